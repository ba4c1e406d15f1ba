# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""The flags of llama-server by which another program's settings are read: no binary is asked on the controller.

A test compares them with a build's --help. Hosts check a profile against their own binary in any case.
"""

from __future__ import annotations

from functools import cache

from .._runtime.flags import Flag

BUILD = 11669
# Names in snake_case, each with ! where it has an opposite (--no-…) and = where it takes a value (=2: two words), then
# its short spellings and other names.
_ROWS = """
adaptive_decay=; adaptive_target=; agent! -ag; alias= -a; api_key=; api_key_file=; api_prefix=;
backend_sampling -bs; batch_size= -b; cache_idle_slots!; cache_list -cl; cache_prompt!; cache_ram= -cram;
cache_reuse=; cache_type_k= -ctk; cache_type_v= -ctv; chat_template=; chat_template_file=;
chat_template_kwargs=; check_tensors; checkpoint_min_step= -cms; completion_bash; cont_batching! -cb;
context_shift!; control_vector=; control_vector_layer_range=2; control_vector_scaled=; cors_credentials!;
cors_headers=; cors_methods=; cors_origins=; cpu_mask= -C; cpu_mask_batch= -Cb; cpu_moe -cmoe; cpu_range= -Cr;
cpu_range_batch= -Crb; cpu_strict=; cpu_strict_batch=; ctx_checkpoints= -ctxcp swa_checkpoints; ctx_size= -c;
defrag_thold= -dt; device= -dev; docker_repo= -dr; dry_allowed_length=; dry_base=; dry_multiplier=;
dry_penalty_last_n=; dry_sequence_breaker=; dynatemp_exp=; dynatemp_range=; embd_gemma_default; embd_normalize=;
embeddings embedding; escape! -e; fim_qwen_1.5b_default; fim_qwen_14b_spec; fim_qwen_30b_default;
fim_qwen_3b_default; fim_qwen_7b_default; fim_qwen_7b_spec; fit= -fit; fit_ctx= -fitc; fit_target= -fitt;
flash_attn= -fa; frequency_penalty=; gpt_oss_120b_default; gpt_oss_20b_default; grammar=; grammar_file=;
help -h usage; hf_file= -hff; hf_repo= -hf -hfr; hf_token= -hft; host=; ignore_eos; image_max_tokens=;
image_min_tokens=; jinja!; json_schema= -j; json_schema_file= -jf; keep=; kv_offload! -kvo; kv_unified! -kvu;
kv_unified_per_slot=; lazy_mode= -lzm; list_devices; load_mode= -lm; log_colors=; log_disable; log_file=;
log_jsonl!; log_prefix!; log_prompts_dir=; log_timestamps!; log_verbosity= -lv verbosity; logit_bias= -l;
lookup_cache_dynamic= -lcd; lookup_cache_static= -lcs; lora=; lora_init_without_apply; lora_scaled=;
main_gpu= -mg; mcp_servers_config=; mcp_servers_json=; media_path=; metrics; min_p=; mirostat=; mirostat_ent=;
mirostat_lr=; mmproj= -mm; mmproj_auto! no_mmproj; mmproj_device= -mmdev; mmproj_offload!; mmproj_url= -mmu;
model= -m; model_url= -mu; models_autoload!; models_dir=; models_max=; models_preset=; moe_cache_mib=;
mtmd_batch_max_tokens=; n_cpu_ffn= -ncffn; n_cpu_moe= -ncmoe; n_gpu_layers= -ngl gpu_layers;
n_gpu_layers_draft= -ngld spec_draft_ngl gpu_layers_draft; n_predict= -n predict; no_host; numa=; offline;
op_offload!; override_kv=; override_tensor= -ot; parallel= -np; path=; perf!; poll=; poll_batch=; pooling=;
port=; prefill_assistant!; presence_penalty=; prio=; prio_batch=; props; reasoning= -rea; reasoning_budget=;
reasoning_budget_message=; reasoning_effort=; reasoning_format=; reasoning_preserve!; repack!; repeat_last_n=;
repeat_penalty=; reranking rerank; reuse_port; reverse_prompt= -r; rope_freq_base=; rope_freq_scale=;
rope_scale=; rope_scaling=; rpc=; sampler_seq= sampling_seq; samplers=; seed= -s; skip_chat_parsing!;
sleep_idle_seconds=; slot_prompt_similarity= -sps; slot_save_path=; slots!; spec_default;
spec_draft_backend_sampling!; spec_draft_cpu_mask= -Cd cpu_mask_draft;
spec_draft_cpu_mask_batch= -Cbd cpu_mask_batch_draft; spec_draft_cpu_moe -cmoed cpu_moe_draft;
spec_draft_cpu_range= -Crd cpu_range_draft; spec_draft_cpu_strict= cpu_strict_draft;
spec_draft_cpu_strict_batch= cpu_strict_batch_draft; spec_draft_device= -devd device_draft;
spec_draft_hf= -hfd -hfrd hf_repo_draft; spec_draft_model= -md model_draft;
spec_draft_n_cpu_moe= -ncmoed spec_draft_ncmoe n_cpu_moe_draft; spec_draft_n_max=; spec_draft_n_min=;
spec_draft_n_ubatch=; spec_draft_override_tensor= -otd override_tensor_draft; spec_draft_p_min= draft_p_min;
spec_draft_p_split= draft_p_split; spec_draft_poll= poll_draft; spec_draft_poll_batch= poll_batch_draft;
spec_draft_prio= prio_draft; spec_draft_prio_batch= prio_batch_draft; spec_draft_sampling=;
spec_draft_threads= -td threads_draft; spec_draft_threads_batch= -tbd threads_batch_draft;
spec_draft_type_k= -ctkd cache_type_k_draft; spec_draft_type_v= -ctvd cache_type_v_draft;
spec_ngram_map_k4v_min_hits=; spec_ngram_map_k4v_size_m=; spec_ngram_map_k4v_size_n=;
spec_ngram_map_k_min_hits=; spec_ngram_map_k_size_m=; spec_ngram_map_k_size_n=; spec_ngram_mod_n_match=;
spec_ngram_mod_n_max=; spec_ngram_mod_n_min=; spec_ngram_simple_min_hits=; spec_ngram_simple_size_m=;
spec_ngram_simple_size_n=; spec_synth_len=; spec_synth_rates=; spec_type=; special -sp; split_mode= -sm;
spm_infill; sse_ping_interval=; ssl_cert_file=; ssl_key_file=; swa_full; tags=; temperature= temp;
tensor_split= -ts; threads= -t; threads_batch= -tb; threads_http=; timeout= -to; tools=; tools_runtime=; top_k=;
top_nsigma= top_n_sigma; top_p=; typical= typical_p; ubatch_size= -ub; ui! webui no_webui;
ui_config= webui_config; ui_config_file= webui_config_file; ui_mcp_proxy! webui_mcp_proxy no_webui_mcp_proxy;
verbose -v log_verbose; version; video_ffmpeg_dir=; video_fps=; video_timestamp_interval=;
vision_gemma_12b_default; vision_gemma_4b_default; warmup!; xtc_probability=; xtc_threshold=; yarn_attn_factor=;
yarn_beta_fast=; yarn_beta_slow=; yarn_ext_factor=; yarn_orig_ctx=
"""
# Short spellings of opposites.
OPPOSITES = {"nocb": "no_cont_batching", "nkvo": "no_kv_offload", "nr": "no_repack"}


@cache
def known_flags() -> dict[str, Flag]:
    """The flags by name."""
    return {flag.name: flag for flag in map(_flag, _ROWS.replace("\n", " ").split(";"))}


def _flag(row: str) -> Flag:
    head, *others = row.split()
    plain, takes, words = head.partition("=")
    name = plain.rstrip("!")
    spelling = name.replace("_", "-")
    return Flag(
        name=name,
        spelling=f"--{spelling}",
        value=bool(takes),
        words=int(words or bool(takes)),
        negation=f"--no-{spelling}" if plain.endswith("!") else None,
        aliases=tuple(one for one in others if not one.startswith("-")),
        shorts=tuple(one[1:] for one in others if one.startswith("-")),
    )
