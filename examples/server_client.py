"""Starts `first-cpp serve` and asks it with the OpenAI client. python examples/server_client.py [MODEL.gguf [LAYER ...]]

Needs the server extra and `pip install openai`.
"""

from __future__ import annotations

import re
import subprocess
import sys

from openai import OpenAI

from first_cpp.gguf.bundled import find_demo_model


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else find_demo_model()
    command = [sys.executable, "-m", "first_cpp", "serve", "-m", model, "-c", "1024", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = first_address(server)
        client = OpenAI(base_url=f"{address}/v1", api_key="none")
        answer = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "Name a colour."}],
            max_tokens=20,
            extra_body={"skip": [int(word) for word in sys.argv[2:]] or [14, 15]},  # or a share, with a model that has routers
        )
        print(answer.choices[0].message.content)
        print("skipped:", answer.model_extra["first_cpp"]["skipped_layers"])
    finally:
        server.terminate()
        server.wait()


def first_address(server: subprocess.Popen[str]) -> str:
    """The address that the server prints once it listens."""
    for line in server.stdout:
        if found := re.search(r"http://\S+?:\d+", line):
            return found[0]
    raise RuntimeError("the server ended before it listened")


if __name__ == "__main__":
    main()
