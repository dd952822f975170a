"""A streamed answer that is cancelled midway, then another one. python examples/asynchronous.py [MODEL.gguf]"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from first_cpp import AsyncLlama
from first_cpp.gguf.bundled import find_demo_model


async def tell(llm: AsyncLlama, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    async with contextlib.aclosing(await llm.create_chat_completion(messages, stream=True, temperature=0.0)) as chunks:
        async for chunk in chunks:
            print(chunk["choices"][0]["delta"].get("content", ""), end="", flush=True)
    print()


async def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    async with AsyncLlama(model, n_ctx=1024, skip=[4], verbose=False) as llm:
        try:
            await asyncio.wait_for(tell(llm, "Tell me a long story about a lighthouse."), timeout=0.5)
            print("-- it ended before it was cancelled")
        except asyncio.TimeoutError:
            print("\n-- cancelled; the model is ready for the next question")
        await tell(llm, "Name a colour in one word.")


if __name__ == "__main__":
    asyncio.run(main())
