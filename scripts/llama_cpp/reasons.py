"""Which of llama.cpp's tests do not apply to `coterie serve`, and why."""

from __future__ import annotations

import re

FILES = {
    "test_compat_gcp.py": "Vertex AI's wrapping of requests is not offered",
    "test_embedding.py": "there are no embeddings (status 501)",
    "test_ignore_eos.py": "looks at llama-server's own settings of a generation",
    "test_infill.py": "filling in the middle is not offered",
    "test_kv_keep_only_active.py": "about llama-server's slots and their caches",
    "test_lora.py": "there are no adapters",
    "test_mcp_servers.py": "the server starts no tools of its own",
    "test_proxy.py": "nothing that a client names is fetched",
    "test_rerank.py": "there is no ranking (status 501)",
    "test_router.py": "a server has one model",
    "test_sleep.py": "a server keeps its model open",
    "test_slot_save.py": "clients do not name files",
    "test_speculative.py": "there is no draft model",
    "test_stream.py": "a stream is not taken up again; about loading models",
    "test_template.py": "templates are the model's own, not those of other models",
    "test_tool_call.py": "needs models that are downloaded, or their templates",
    "test_tools_builtin.py": "the server has no tools of its own",
}
"""Whole files that do not apply."""

_OWN = "asks llama-server's own `/completion`"
_CORS = "asserts that any origin, or any of localhost, may read; here origins are named to the letter"
_TEMPLATE = "wants the template of another model"
_VERBOSE = "wants the prompt shown in the answer"

TESTS = {
    "test_basic.py::test_server_multiple_addresses": "a server listens at one address",
    "test_basic.py::test_server_props": "wants the model's path, which is nobody's business, and `--seed`",
    "test_basic.py::test_server_slots": "`/slots` cannot be switched off: it has nothing of requests",
    "test_basic.py::test_load_split_model": _OWN,
    "test_basic.py::test_no_ui": "about llama-server's pages",
    "test_basic.py::test_server_model_aliases_and_tags": "each name of the model is listed by itself, as OpenAI's clients want it",
    "test_tokenize.py::test_tokenize_with_bos": "wants the first token of another model",
    "test_tokenize.py::test_tokenize_with_pieces": "tokens are given as ids alone",
    "test_security.py::test_access_static_assets_without_api_key": "about llama-server's pages",
    "test_security.py::test_correct_api_key": _OWN,
    "test_security.py::test_openai_library_correct_api_key": "asks without `/v1`",
    "test_security.py::test_cors_options": _CORS,
    "test_security.py::test_cors_origins": _CORS,
    "test_security.py::test_cors_proxy": "nothing that a client names is fetched",
    r"test_security.py::test_local_media_file\[.*True\]": "no file that a client names is opened",
    r"test_chat_completion.py::test_chat_completion\[codellama70b": "asks for a model by another name",
    "test_chat_completion.py::test_chat_completion_cached_tokens": "counts the cached tokens of another model",
    "test_chat_completion.py::test_chat_template": _VERBOSE,
    "test_chat_completion.py::test_apply_chat_template": _TEMPLATE,
    "test_chat_completion.py::test_completion_with_json_schema": "wants `json_schema` beside `response_format`",
    "test_chat_completion.py::test_completion_with_(invalid_)?grammar": "grammars of llama.cpp are not taken",
    r"test_chat_completion.py::test_completion_with_response_format\[response_format[01]-": "wants a schema in `json_object`; it belongs into `json_schema`",
    r"test_chat_completion.py::test_invalid_chat_completion_req\[messages7\]": "two answers in a row are refused only by templates that have no place for them",
    "test_chat_completion.py::test_chat_completion_with_timings_per_token": "there are no times in answers; `/metrics` has them",
    "test_chat_completion.py::test_context_size_exceeded": "has another type; here it is the code `context_length_exceeded`",
    "test_chat_completion.py::test_return_progress": "counts llama-server's batches",
    "test_chat_completion.py::test_chat_completions_multiple_choices": "clients do not choose slots (`id_slot`)",
    "test_chat_completion.py::test_verbose_debug": _VERBOSE,
    "test_compat_oai_responses.py::test_responses_stream_with_llama_telemetry": "there are no times in answers; `/metrics` has them",
    "test_compat_anthropic.py::test_anthropic_tool_result_with_image": "asserts that the model sees nothing, but it does",
    "test_compat_anthropic.py::test_anthropic_vision_format_accepted": "asserts that the model sees nothing, but it does",
    "test_compat_anthropic.py::test_anthropic_vision_base64": "downloads a picture",
    "test_compat_anthropic.py::test_anthropic_empty_messages": "a conversation without messages is refused by name",
    r"test_compat_anthropic.py::test_anthropic_thinking($|_)": "a budget for thinking is refused by name, or wants another model",
    "test_ctx_shift.py": _OWN,
    "test_vision_api.py::.*supports_multimodal": "wants `models` beside `data`; here `architecture` has the modalities",
    "test_vision_api.py::test_vision_chat_completion": "downloads pictures, or has the server fetch them",
    "test_vision_api.py::test_vision_(completion|embeddings)": "asks llama-server's own `/completion`, or for embeddings",
    "test_metrics.py": "wants llama-server's names of figures, or its `/completion`",
    r"test_completion.py::test_completion(_stream)?(\[|$)": _OWN,
    "test_completion.py::test_(completion_stream_vs|consistent|different|nocache|cache_vs|json_prompt|completion_with_tokens)": _OWN,
    "test_completion.py::test_(completion_parallel|completion_unified|completion_response|completion_prompt|n_probs|logit_bias)": _OWN,
}
"""Patterns of tests → why they do not apply."""

DROPPED = (
    re.compile(r"== n_prompt\b"),
    re.compile(r"system_fingerprint.*startswith\(\"b\"\)"),
    re.compile(r"^\s*assert .*\"prompt_tokens_details\""),
)
"""Lines of tests about what only llama-server's own model or build can give."""


def reason_of(name: str) -> str:
    """Why a test does not apply; empty if it does.

    Args:
        name: File and test, such as ``test_basic.py::test_no_ui``.
    """
    file = name.partition("::")[0]
    found = (why for pattern, why in TESTS.items() if re.match(pattern, name))
    return FILES.get(file) or next(found, "")
