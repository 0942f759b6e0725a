"""Flags that users of vLLM know and this server does not take: which of ours does the same, or that none does.

Names are as in unsupported_flags.py. One that SGLang has too is not here. A pair is only one where both flags mean the
same; where they nearly do, the text says what differs. A test checks that every flag named here is one of ours.
"""

# vLLM's name -> what to type here. "--x" alone: the values mean the same too.
_OURS: dict[str, str] = {
    "max_model_len": "--context-length",
    "max_num_seqs": "--max-running-requests",
    "gpu_memory_utilization": "--mem-fraction-static, which is the share of weights and KV cache alone: what a step "
    "needs beside them comes on top",
    "max_num_batched_tokens": "--chunked-prefill-size, which counts prompt tokens of a step alone",
    "max_num_scheduled_tokens": "--chunked-prefill-size, which counts prompt tokens of a step alone",
    "kv_cache_memory_bytes": "--max-total-tokens, in tokens",
    "num_gpu_blocks_override": "--max-total-tokens, in tokens",
    "block_size": "--page-size",
    "kv_offloading_size": "--enable-hierarchical-cache with --hicache-size, in GB of each GPU's own",
    "tokenizer": "--tokenizer-path",
    "seed": "--random-seed",
    "hf_overrides": "--json-model-override-args",
    "generation_config": "--sampling-defaults model or openai",
    "override_generation_config": "--preferred-sampling-params, which is for /generate",
    "enforce_eager": "--disable-cuda-graph",
    "max_cudagraph_capture_size": "--cuda-graph-max-bs",
    "max_seq_len_to_capture": "--cuda-graph-max-bs, in requests",
    "cudagraph_capture_sizes": "--cuda-graph-max-bs, the largest of them",
    "compilation_config": "--disable-cuda-graph or --cuda-graph-max-bs, which choose graphs",
    "optimization_level": "--disable-cuda-graph or --cuda-graph-max-bs, which choose graphs",
    "no_enable_prefix_caching": "--disable-radix-cache",
    "no_enable_chunked_prefill": "--chunked-prefill-size -1",
    "no_async_scheduling": "--disable-overlap-schedule",
    "scheduling_policy": "--schedule-policy",
    "moe_backend": "--moe-runner-backend",
    "speculative_config": "--speculative-algorithm NEXTN with --speculative-draft-model-path and "
    "--speculative-num-steps",
    "spec_method": "--speculative-algorithm",
    "spec_model": "--speculative-draft-model-path",
    "spec_tokens": "--speculative-num-steps",
    "master_addr": "--dist-init-addr HOST:PORT",
    "master_port": "--dist-init-addr HOST:PORT",
    "enable_log_requests": "--log-requests",
    "uvicorn_log_level": "--log-level",
    "max_log_len": "--log-requests-level 2, which cuts texts short",
    "enable_prompt_tokens_details": "--enable-cache-report",
    "structured_outputs_config": "--grammar-backend",
    "guided_decoding_backend": "--grammar-backend",
    "enable_reasoning": "--reasoning-parser",
    "reasoning_config": "--reasoning-parser",
}

_ALWAYS = "is vLLM's; here it is always so; leave it out"
_TEXT_ONLY = "is vLLM's; only text is served here; leave it out"
_NONE = "is vLLM's and has no counterpart here; leave it out"

_BY_REASON: dict[str, str] = {
    "is vLLM's; calls are read here wherever --tool-call-parser is on, as it is for Gemma 4; leave it out": """
        enable_auto_tool_choice
    """,
    "is vLLM's; here prefixes are cached unless --disable-radix-cache is given; leave it out": "enable_prefix_caching",
    "is vLLM's; here it is the default; leave it out": "enable_chunked_prefill async_scheduling",
    "is vLLM's; here requests are not logged unless --log-requests is given; leave it out": """
        disable_log_requests no_enable_log_requests
    """,
    "is vLLM's; here a line comes every --decode-log-interval steps; leave it out": "disable_log_stats",
    "is vLLM's; here the environment variable HF_TOKEN holds the key; leave it out": "hf_token",
    _ALWAYS: """
        enable_flashinfer_autotune disable_frontend_multiprocessing disable_uvicorn_access_log
        scheduler_reserve_full_isl disable_fastapi_docs chat_template_content_format
    """,
    _TEXT_ONLY: """
        limit_mm_per_prompt mm_processor_kwargs mm_processor_cache_gb mm_processor_cache_type media_io_kwargs
        allowed_local_media_path allowed_media_domains disable_chunked_mm_input disable_mm_preprocessor_cache
        enable_mm_embeds interleave_mm_strings language_model_only mm_encoder_attn_backend mm_encoder_attn_dtype
        mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path mm_encoder_only
        mm_encoder_tp_mode mm_ipc_gpu_memory_gb mm_shm_cache_max_object_size_mb mm_tensor_ipc skip_mm_profiling
        video_pruning_rate default_mm_loras enable_tower_connector_lora
    """,
    _NONE: """
        additional_config aggregate_engine_logging all2all_backend allow_credentials allow_deprecated_quantization
        allowed_headers allowed_methods api_server_count attention_config calculate_kv_scales code_revision
        collect_detailed_traces config_format convert cp_kv_cache_interleave_size cpu_distributed_timeout_seconds
        cpu_offload_params cudagraph_metrics data_parallel_address data_parallel_backend data_parallel_external_lb
        data_parallel_hybrid_lb data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port
        data_parallel_size_local data_parallel_start_rank data_parallel_supervisor_port dbo_decode_token_threshold
        dbo_prefill_token_threshold dcp_kv_cache_interleave_size device_ids diffusion_config
        disable_access_log_for_endpoints disable_cascade_attn disable_hybrid_kv_cache_manager
        disable_nccl_for_dp_synchronization disable_sliding_window distributed_executor_backend
        distributed_timeout_seconds dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s
        dp_supervisor_probe_timeout_s ec_transfer_config enable_bf16x3_router_gemm enable_cumem_allocator enable_dbo
        enable_elastic_ep enable_ep_weight_filter enable_expert_parallel enable_flash_late_interaction
        enable_force_include_usage enable_layerwise_nvtx_tracing enable_log_deltas enable_log_outputs
        enable_logging_iteration_details enable_mixed_moe_lora_format enable_moe_shared_loras enable_offline_docs
        enable_per_request_metrics enable_prompt_embeds enable_request_id_headers enable_server_load_tracking
        enable_sleep_mode enable_tokenizer_info_endpoint eplb_config exclude_tools_when_tool_choice_none
        expert_placement_strategy fail_on_environ_validation fingerprint_mode fingerprint_value
        fully_sharded_loras gdn_prefill_backend grpc headless hf_config_path ignore_patterns io_processor_plugin
        ir_op_priority jit_monitor_mode jit_monitor_verbose kernel_config kv_cache_dtype_skip_layers kv_cache_metrics
        kv_cache_metrics_sample kv_offloading_backend kv_sharing_fast_prefill kv_transfer_config
        linear_backend log_config_file log_error_stack logits_processors logprobs_mode long_prefill_token_threshold
        lora_dtype lora_extra_vocab_size lora_modules mamba_block_size mamba_cache_dtype mamba_cache_mode
        mamba_ssm_cache_dtype max_cpu_loras max_logprobs max_long_partial_prefills max_loras
        max_num_partial_prefills max_parallel_loading_workers middleware model_class_overrides num_scheduler_steps
        numa_bind numa_bind_cpus numa_bind_nodes offload_backend offload_params override_attention_dtype
        performance_mode pooler_config prefill_context_parallel_size prefill_schedule_interval
        prefix_caching_hash_algo prefix_match_unit profiler_config pt_load_map_location quantization_config
        ray_workers_use_nsight reasoning_parser_plugin renderer_num_workers response_role
        return_tokens_as_token_ids root_path runner safetensors_load_strategy safetensors_prefetch_block_size
        safetensors_prefetch_num_threads scheduler_cls show_hidden_metrics_for_version shutdown_timeout
        specialize_active_lora ssl_cert_reqs ssl_ciphers swap_space task tokens_only tool_parser_plugin
        trust_request_chat_template ubatch_size uds use_fp64_gumbel use_tqdm_on_load use_v2_block_manager watermark
        weight_transfer_config worker_cls worker_extension_cls
    """,
}

VLLM: dict[str, str] = {name: f"is vLLM's name: here it is {ours}" for name, ours in _OURS.items()}
VLLM |= {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
