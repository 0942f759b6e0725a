"""Flags that users of SGLang know and this server does not take. They are refused by name, never ignored; those of
vLLM's users are in vllm_flags.py.

Names are without the leading dashes, with underscores, so the same table serves the command line and Engine(**kwargs).
A flag moves out of here when its field lands in server_args.py; a test checks that no name is in both.
"""

from sglang.srt.vllm_flags import VLLM

# Reasons that more than one flag shares.
_LATER = "is not supported yet; leave it out"
_SPLIT = "is not supported: a model is split over GPUs by --tp-size alone; leave it out"
_NO_SPEC = "is not supported: a Gemma4Assistant drafter makes the drafts and they are verified exactly; leave it out"
_TEXT_ONLY = "is not supported: only text is served; leave it out"
_GRAPHS = (
    "is not supported: graphs are chosen by --disable-cuda-graph, --cuda-graph-max-bs, --disable-piecewise-cuda-graph "
    "and --piecewise-cuda-graph-max-tokens"
)
_NO_LORA = "is not supported: LoRA adapters are not served; leave it out"
_NO_HICACHE = "is not supported: --enable-hierarchical-cache keeps prefixes in host memory in its own way; leave it out"
_NO_DISAGG = "is not supported: prefill and decode run in one server; leave it out"
_NO_TOOLS = "is not supported: tools are the client's to run; leave it out"
_FAMILIES = "is not supported: it belongs to model families that are not served; leave it out"
_DEBUG = "is not supported: it looks into upstream's own parts; leave it out"
_NO_GRPC = "is not supported: requests come over HTTP; leave it out"
_SAFETENSORS = "is not supported: weights are read from safetensors as they are; leave it out"

_BY_REASON: dict[str, str] = {
    _LATER: """
        enable_metrics_for_all_schedulers enable_torch_compile torch_compile_max_bs completion_template
        num_continuous_decode_steps enable_priority_scheduling schedule_low_priority_values_first
        priority_scheduling_preemption_threshold prefill_attention_backend decode_attention_backend
        triton_attention_num_kv_splits triton_attention_split_tile_size triton_attention_reduce_in_fp32
        disable_hybrid_swa_memory enable_request_time_stats_logging crash_dump_folder warmups admin_api_key
        log_level_http log_requests_format log_requests_target enable_trace otlp_traces_endpoint
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
        disable_priority_preemption default_priority_value abort_on_priority_when_disabled retraction_policy
        prefill_only_disable_kv_cache enable_page_major_kv_layout enable_unified_memory hf_chat_template_name
        strip_thinking_cache enable_strict_thinking batch_notify_size stream_response_default_include_usage
        enable_streaming_session enable_session_radix_cache uvicorn_access_log_exclude_prefixes enable_mfu_metrics
        load_snapshot_publish_interval tokenizer_metrics_allowed_custom_labels extra_metric_labels
        prompt_tokens_buckets generation_tokens_buckets enable_forward_pass_metrics forward_pass_metrics_worker_id
        forward_pass_metrics_ipc_name trace_modules export_metrics_to_file export_metrics_to_file_dir stat_loggers
        constrained_json_disable_any_whitespace disable_outlines_disk_cache radix_cache_backend enable_http2
        ssl_keyfile_password enable_ssl_refresh custom_sigquit_handler gc_threshold enable_tf32_matmul
        fp8_gemm_runner_backend fp4_gemm_runner_backend bf16_gemm_backend flashinfer_mxfp4_moe_precision
        disable_flashinfer_autotune flashinfer_autotune_skip_ops enable_quant_communications
        enforce_disable_flashinfer_allreduce_fusion flashinfer_allreduce_fusion_backend enable_aiter_allreduce_fusion
        enable_torch_compile_debug_mode enable_layerwise_nvtx_marker weight_loader_prefetch_checkpoints
        weight_loader_prefetch_num_threads weight_loader_drop_cache_after_load weight_cache_mode weight_cache_socket
        weight_cache_timeout engine_info_bootstrap_port modelexpress_config model_checksum decrypted_config_file
        decrypted_draft_config_file checkpoint_engine_wait_weights_before_ready enable_prefill_delayer
        prefill_delayer_max_delay_passes prefill_delayer_token_usage_low_watermark
        prefill_delayer_forward_passes_buckets prefill_delayer_wait_seconds_buckets prefill_delayer_queue_min_ratio
        prefill_delayer_max_delay_ms min_free_slots_delay enable_dynamic_batch_tokenizer
        dynamic_batch_tokenizer_batch_size dynamic_batch_tokenizer_batch_timeout enable_tokenizer_batch_encode
        disable_tokenizer_batch_decode return_hidden_states_mode enable_return_routed_experts
        enable_return_indexer_topk enable_mis
    """,
    _DEBUG: """
        debug_cuda_graph kv_canary kv_canary_real_data kv_canary_sweep_interval debug_tensor_dump_output_folder
        debug_tensor_dump_layers debug_tensor_dump_input_file forward_hooks msprobe_dump_config
    """,
    _NO_GRPC: """
        smg_grpc_mode grpc_mode grpc_port sidecar sidecar_args smg_http_sidecar_port grpc_http_sidecar_port use_ray
    """,
    _FAMILIES: """
        enable_dsa_cache_layer_split dsa_prefill_backend dsa_decode_backend dsa_paged_mqa_logits_backend
        dsa_topk_backend mamba_backend flashinfer_mla_disable_ragged enable_fused_qk_norm_rope
        enable_fused_moe_sum_all_reduce enable_deepseek_v4_fp4_indexer enable_scattered_sconv
        disable_shared_experts_fusion enforce_shared_experts_fusion max_mamba_cache_size mamba_ssm_dtype
        mamba_max_states_per_path enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds
        mamba_full_memory_ratio mamba_radix_cache_strategy mamba_track_interval enable_int8_mamba_checkpoint
        int8_mamba_ckpt_size linear_attn_backend linear_attn_decode_backend linear_attn_prefill_backend
        linear_attn_verify_backend enable_linear_replayssm linear_replayssm_cache_len enable_linear_replayssm_spec
        enable_hisparse hisparse_config hierarchical_sparse_attention_extra_config dllm_algorithm
        dllm_algorithm_config dllm_fdfo asr_max_buffer_seconds asr_max_concurrent_sessions
    """,
    _NO_TOOLS: "tool_server",
    _SPLIT: """
        pp_size pipeline_parallel_size pp dp_size data_parallel_size dp ep_size expert_parallel_size ep
        dist_timeout nccl_port base_gpu_id gpu_id_step enable_dp_attention attn_dp_size
        enable_dp_lm_head load_balance_method moe_a2a_backend moe_dense_tp_size
        disable_custom_all_reduce enable_mscclpp enable_symm_mem enable_nccl_nvls enable_torch_symm_mem
        enable_two_batch_overlap tbo_token_distribution_threshold deepep_mode deepep_config ep_num_redundant_experts
        ep_dispatch_algorithm enable_eplb eplb_algorithm init_expert_location expert_distribution_recorder_mode
        elastic_ep_backend pp_max_micro_batch_size
        dcp_size decode_context_parallel_size pp_async_batch_depth attn_cp_size attention_context_parallel_size
        moe_dp_size moe_data_parallel_size dwdp_size dcp_comm_backend dcp_replicate_q_proj enable_prefill_cp
        cp_strategy enable_cp_decode_attn_tp enable_dp_attention_local_control_broadcast
        enable_attn_tp_input_scattered disable_attn_tp_gather pre_warm_nccl fuseep_mode deepep_dispatcher_output_dtype
        eplb_rebalance_num_iterations eplb_rebalance_layers_per_chunk eplb_min_rebalancing_utilization_threshold
        expert_distribution_recorder_buffer_size enable_expert_distribution_metrics enable_elastic_expert_backup
        mooncake_ib_device enable_waterfill ep_join_mode ep_join_rank_offset elastic_ep_join_mode
        elastic_ep_join_rank_offset elastic_ep_initial_size max_ep_size elastic_ep_scale_timeout elastic_ep_rejoin
        disable_flashinfer_cutlass_moe_fp4_allgather
    """,
    _NO_SPEC: """
        speculative_draft_load_format
        speculative_accept_threshold_single speculative_accept_threshold_acc
        speculative_attention_mode speculative_token_map speculative_draft_attention_backend
        speculative_draft_model_quantization speculative_moe_runner_backend speculative_ngram_max_match_window_size
        enable_multi_layer_eagle speculative_dflash_block_size speculative_dspark_block_size
        speculative_dspark_sps_table_path speculative_dspark_confidence_sts_path
        speculative_dspark_align_verify_tokens_to_graph_tier speculative_use_rejection_sampling
        speculative_draft_window_size speculative_moe_a2a_backend speculative_skip_dp_mlp_sync speculative_adaptive
        speculative_adaptive_config decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints
        decoupled_spec_rank decoupled_spec_role spec_trace_dir speculative_ngram_min_bfs_breadth
        speculative_ngram_max_bfs_breadth speculative_ngram_match_type speculative_ngram_max_trie_depth
        speculative_ngram_capacity speculative_ngram_external_corpus_path speculative_ngram_external_sam_budget
        speculative_ngram_external_corpus_max_tokens enable_draft_weights_cpu_backup
    """,
    _TEXT_ONLY: """
        enable_multimodal limit_mm_data_per_request mm_attention_backend mm_max_concurrent_calls mm_per_request_timeout
        enable_broadcast_mm_inputs_process mm_enable_dp_encoder keep_mm_feature_on_device
        disable_fast_image_processor encoder_only language_only encoder_urls is_embedding enable_prefix_mm_cache
        mm_process_config mm_processor_worker_num mm_io_worker_num enable_mm_global_cache mm_feature_transport
        encoder_transfer_backend encoder_bootstrap_port encoder_register_urls enable_adaptive_dispatch_to_encoder
        enable_precise_embedding_interpolation
    """,
    _GRAPHS: """
        disable_decode_cuda_graph disable_prefill_cuda_graph cuda_graph_max_bs_decode cuda_graph_bs
        cuda_graph_bs_decode disable_cuda_graph_padding enable_profile_cuda_graph
        enable_cudagraph_gc piecewise_cuda_graph_tokens cuda_graph_config cuda_graph_backend_decode
        cuda_graph_backend_prefill cuda_graph_max_bs_prefill cuda_graph_bs_prefill cuda_graph_tc_compiler
    """,
    _NO_LORA: """
        enable_lora enable_lora_overlap_loading lora_paths max_lora_rank lora_target_modules max_loras_per_batch
        max_loaded_loras lora_backend lora_eviction_policy max_lora_chunk_size
        experts_shared_outer_loras lora_use_virtual_experts lora_strict_loading lora_drain_wait_threshold
    """,
    _NO_HICACHE: """
        hicache_io_backend hicache_mem_layout hicache_write_policy
        hicache_storage_backend hicache_storage_prefetch_policy hicache_storage_backend_extra_config enable_lmcache
        cpu_offload_gb offload_mode offload_group_size offload_num_in_group offload_prefetch_step
        lmcache_config_file enable_flexkv flexkv_config_file kt_weight_path kt_method kt_cpuinfer kt_threadpool_count
        kt_num_gpu_experts kt_max_deferred_experts_per_token
    """,
    _NO_DISAGG: """
        disaggregation_mode disaggregation_transfer_backend disaggregation_bootstrap_port disaggregation_decode_tp
        disaggregation_decode_dp disaggregation_prefill_pp disaggregation_ib_device
        disaggregation_decode_enable_offload_kvcache num_reserved_decode_tokens
        disaggregation_decode_polling_interval disaggregation_decode_enable_radix_cache
        disaggregation_decode_extra_slots optimistic_prefill_attempts enable_pdmux pdmux_config_path sm_group_num
    """,
    "is not supported: a tokenizer is of its model's --revision; leave it out": "tokenizer_revision",
    _SAFETENSORS: """
        quantization quantization_param_path torchao_config modelopt_quant modelopt_checkpoint_restore_path
        enable_fp32_lm_head model_loader_extra_config quantize_and_serve model_config_parser
        modelopt_checkpoint_save_path modelopt_export_path rl_quant_profile
        remote_instance_weight_loader_seed_instance_ip remote_instance_weight_loader_seed_instance_service_port
        remote_instance_weight_loader_send_weights_group_ports remote_instance_weight_loader_backend
        remote_instance_weight_loader_start_seed_via_transfer_engine
    """,
    "is not supported: the implementation is chosen by the config's architecture; leave it out": "model_impl",
    "is not supported: the fast tokenizer is always used; leave it out": "tokenizer_mode tokenizer_backend",
    "is upstream's older name: give --dist-init-addr HOST:PORT": "nccl_init_addr",
    "is gone: use --attention-backend": "enable_flashinfer_mla enable_flashmla disable_flashinfer",
}

UNSUPPORTED: dict[str, str] = {name: reason for reason, names in _BY_REASON.items() for name in names.split()}

# Values of flags above that ask for what is done here anyway: with one of them a flag is taken, and changes nothing.
_AS_HERE: dict[str, str] = {
    "1": """
        pp_size pipeline_parallel_size pp dp_size data_parallel_size dp ep_size expert_parallel_size ep attn_dp_size
        moe_dp_size moe_data_parallel_size attn_cp_size attention_context_parallel_size dcp_size
        decode_context_parallel_size num_continuous_decode_steps gpu_id_step tokenizer_worker_num
        detokenizer_worker_num speculative_accept_threshold_single speculative_accept_threshold_acc
    """,
    "1.0": "speculative_accept_threshold_single speculative_accept_threshold_acc",
    "0": "base_gpu_id cpu_offload_gb",
    "auto": "tokenizer_mode model_impl",
    "none": "moe_a2a_backend",
    "null": "disaggregation_mode",
    "text": "log_requests_format",
    "sglang": "model_impl",
    "write_through": "hicache_write_policy",
}
AS_HERE = frozenset((name, value) for value, names in _AS_HERE.items() for name in names.split())


def means_what_is_done(name: str, value: object) -> bool:
    """Whether a flag of the table asks, with this value, for what is done anyway."""
    return (name, str(value)) in AS_HERE


def refusal(name: str) -> str | None:
    """Why the flag is refused, as the end of a sentence that starts with the flag; None for an unlisted name."""
    return UNSUPPORTED.get(name) or VLLM.get(name)
