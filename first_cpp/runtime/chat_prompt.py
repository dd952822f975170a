"""The prompt of a chat, as the model's own template writes it."""

from __future__ import annotations

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter


def chat_prompt(llm: llama_cpp.Llama, text: str) -> list[int]:
    """The tokens of a user's turn in the model's own chat template; the plain text for a model without one."""
    template = llm.metadata.get("tokenizer.chat_template")
    if template is None:
        return llm.tokenize(text.encode("utf-8"))  # type: ignore[no-any-return]
    words = [llm._model.token_get_text(token) if token >= 0 else "" for token in (llm.token_eos(), llm.token_bos())]
    formatter = Jinja2ChatFormatter(template=template, eos_token=words[0], bos_token=words[1])
    prompt = formatter(messages=[{"role": "user", "content": text}]).prompt
    return llm.tokenize(prompt.encode("utf-8"), add_bos=False, special=True)  # type: ignore[no-any-return]
