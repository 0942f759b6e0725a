"""Flags that SGLang users know and this server does not take. They are refused by name, never ignored.

Names are without the leading dashes, with underscores, so the same table serves the command line and Engine(**kwargs).
A flag moves out of here when its field lands in server_args.py; a test checks that no name is in both.
"""

# Reasons that more than one flag shares.
_LATER = "is not supported yet; leave it out"
_ONE_GPU = "is not supported yet: the model runs on one device; leave it out"
_NO_SPEC = "is not supported: a Gemma4Assistant drafter makes the drafts and they are verified exactly; leave it out"
_TEXT_ONLY = "is not supported: only text is served; leave it out"
_GRAPHS = (
    "is not supported: graphs are chosen by --disable-cuda-graph, --cuda-graph-max-bs, --disable-piecewise-cuda-graph "
    "and --piecewise-cuda-graph-max-tokens"
)
_NO_LORA = "is not supported: LoRA adapters are not served; leave it out"
_NO_HICACHE = "is not supported: the KV cache has no host tier; leave it out"
_NO_DISAGG = "is not supported: prefill and decode run in one server; leave it out"
_NO_PARSER = "is not supported yet: tools are the client's to run; leave it out"
_LOCAL = "is not supported: models are local folders; download the checkpoint first and give its path"
_SAFETENSORS = "is not supported: weights are read from safetensors as they are; leave it out"

_BY_REASON: dict[str, str] = {
    _LATER: """
        kv_cache_dtype moe_runner_backend
        enable_metrics_for_all_schedulers enable_torch_compile torch_compile_max_bs completion_template
        num_continuous_decode_steps enable_priority_scheduling schedule_low_priority_values_first
        priority_scheduling_preemption_threshold prefill_attention_backend decode_attention_backend
        triton_attention_num_kv_splits triton_attention_split_tile_size triton_attention_reduce_in_fp32
        disable_hybrid_swa_memory enable_request_time_stats_logging crash_dump_folder warmups admin_api_key
        log_level_http log_requests_format log_requests_target enable_trace otlp_traces_endpoint config
        ssl_keyfile ssl_certfile ssl_ca_certs fastapi_root_path file_storage_path tokenizer_worker_num
        detokenizer_worker_num constrained_json_whitespace_pattern enable_custom_logit_processor
        enable_return_hidden_states enable_dynamic_chunking
        enable_memory_saver enable_weights_cpu_backup weight_version weight_loader_disable_mmap
        show_time_cost bucket_time_to_first_token bucket_inter_token_latency
        bucket_e2e_request_latency collect_tokens_histogram kv_events_config tokenizer_metrics_custom_labels_header
        gc_warning_threshold_secs soft_watchdog_timeout sleep_on_idle enable_nan_detection
        disable_chunked_prefix_cache enable_response_store enable_flashinfer_allreduce_fusion delete_ckpt_after_loading
        custom_weight_loader fp8_gemm_backend fp4_gemm_backend
        enable_single_batch_overlap enable_p2p_check rl_on_policy_target numa_node
    """,
    _NO_PARSER: "tool_server",
    _ONE_GPU: """
        pp_size pipeline_parallel_size pp dp_size data_parallel_size dp ep_size expert_parallel_size ep
        dist_timeout nccl_port base_gpu_id gpu_id_step enable_dp_attention attn_dp_size
        enable_dp_lm_head load_balance_method moe_a2a_backend moe_dense_tp_size
        disable_custom_all_reduce enable_mscclpp enable_symm_mem enable_nccl_nvls enable_torch_symm_mem
        enable_two_batch_overlap tbo_token_distribution_threshold deepep_mode deepep_config ep_num_redundant_experts
        ep_dispatch_algorithm enable_eplb eplb_algorithm init_expert_location expert_distribution_recorder_mode
        elastic_ep_backend pp_max_micro_batch_size
    """,
    _NO_SPEC: """
        speculative_draft_model_revision speculative_draft_load_format
        speculative_accept_threshold_single speculative_accept_threshold_acc
        speculative_attention_mode speculative_token_map speculative_draft_attention_backend
        speculative_draft_model_quantization speculative_moe_runner_backend speculative_ngram_max_match_window_size
        enable_multi_layer_eagle
    """,
    _TEXT_ONLY: """
        enable_multimodal limit_mm_data_per_request mm_attention_backend mm_max_concurrent_calls mm_per_request_timeout
        enable_broadcast_mm_inputs_process mm_enable_dp_encoder keep_mm_feature_on_device
        disable_fast_image_processor encoder_only language_only encoder_urls is_embedding enable_prefix_mm_cache
    """,
    _GRAPHS: """
        disable_decode_cuda_graph disable_prefill_cuda_graph cuda_graph_max_bs_decode cuda_graph_bs
        cuda_graph_bs_decode disable_cuda_graph_padding enable_profile_cuda_graph
        enable_cudagraph_gc piecewise_cuda_graph_tokens
    """,
    _NO_LORA: """
        enable_lora enable_lora_overlap_loading lora_paths max_lora_rank lora_target_modules max_loras_per_batch
        max_loaded_loras lora_backend lora_eviction_policy max_lora_chunk_size
    """,
    _NO_HICACHE: """
        enable_hierarchical_cache hicache_ratio hicache_size hicache_write_policy hicache_io_backend hicache_mem_layout
        hicache_storage_backend hicache_storage_prefetch_policy hicache_storage_backend_extra_config enable_lmcache
        cpu_offload_gb offload_mode offload_group_size offload_num_in_group offload_prefetch_step
    """,
    _NO_DISAGG: """
        disaggregation_mode disaggregation_transfer_backend disaggregation_bootstrap_port disaggregation_decode_tp
        disaggregation_decode_dp disaggregation_prefill_pp disaggregation_ib_device
        disaggregation_decode_enable_offload_kvcache num_reserved_decode_tokens
        disaggregation_decode_polling_interval
    """,
    _LOCAL: "revision download_dir tokenizer_revision",
    _SAFETENSORS: """
        quantization quantization_param_path torchao_config modelopt_quant modelopt_checkpoint_restore_path
        enable_fp32_lm_head model_loader_extra_config quantize_and_serve
    """,
    "is not supported: code from a checkpoint is never run; leave it out": "trust_remote_code",
    "is not supported: the implementation is chosen by the config's architecture; leave it out": "model_impl",
    "is not supported: the fast tokenizer is always used; leave it out": "tokenizer_mode tokenizer_backend",
    "is gone: use --attention-backend": "enable_flashinfer_mla enable_flashmla disable_flashinfer",
}

UNSUPPORTED: dict[str, str] = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}


def refusal(name: str) -> str | None:
    """Why the flag is refused, as the end of a sentence that starts with the flag; None for a name not in the table."""
    return UNSUPPORTED.get(name)
