"""A chat of three turns; the second one skips layers. python examples/chat.py [MODEL.gguf]"""

from __future__ import annotations

import sys

from first_cpp import Llama
from first_cpp.gguf.bundled import find_demo_model


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    llm = Llama(model, n_ctx=1024, verbose=False)
    middle = len(llm.unskippable) // 2
    messages = [{"role": "system", "content": "Answer in one short sentence."}]
    turns = [("Name a fruit.", None), ("What colour is it?", [middle - 1, middle]), ("Where does it grow?", None)]
    for question, skip in turns:
        llm.skip = skip  # counts from the next prompt on; with routers, a share like 0.25
        messages.append({"role": "user", "content": question})
        answer = llm.create_chat_completion(messages=messages, max_tokens=32, temperature=0.0)
        messages.append(answer["choices"][0]["message"])
        print(f"> {question}\n{messages[-1]['content']}\n  skipped: {llm.routing.skipped}")
    llm.close()


if __name__ == "__main__":
    main()
