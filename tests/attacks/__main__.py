"""What first_cpp and stock llama_cpp make of each attack: python tests/attacks [--write]

Library attacks run each in a process of its own; requests go to `first-cpp serve` and to llama_cpp.server, which are started
again when they died. Model files are counted from what tests/fuzz/fuzz_open.py wrote: --files OURS STOCK. Results are kept in
--out as they come, and a killed run goes on. --write puts the table into docs/internals/faults.md.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

os.environ["GGML_NO_BACKTRACE"] = "1"  # it would start a debugger
HERE = pathlib.Path(__file__).parent
TESTS = HERE.parent
sys.path[:0] = [str(TESTS / name) for name in ("attacks", "support", "runtime", "serve", "fuzz", ".", "../tools")]

import httpx  # noqa: E402
import llama_cpp  # noqa: E402
from llama_cpp import llama_grammar  # noqa: E402

ITS_OWN_CONVERTER = llama_grammar.json_schema_to_gbnf  # first_cpp puts one in its place that remembers schemas

from apart import run_apart  # noqa: E402
from library import LIBRARY  # noqa: E402
from marks import fill  # noqa: E402
from requests_sent import JSON, SERVER, Sent  # noqa: E402

from first_cpp import Llama  # noqa: E402
from first_cpp.gguf.synthetic import SHAPES, write_random  # noqa: E402

ENGINES = {"first_cpp": Llama, "stock": llama_cpp.Llama}
PAGE = TESTS.parent / "docs" / "internals" / "faults.md"
SECONDS = 30
"""A library attack that takes longer hangs."""
HEALTH = {"first_cpp": "/health", "stock": "/v1/models"}
QUICK = 1.0
Row = dict[str, str]


def library_attack(section: str, name: str, engine: str, model: str) -> str:
    """What comes of one: "held", "wrong: ...", "died: ..." or "hung"."""
    return run_apart(lambda: _judged(section, name, engine, model), SECONDS)


def _judged(section: str, name: str, engine: str, model: str) -> str:
    if engine == "stock":
        llama_grammar.json_schema_to_gbnf = ITS_OWN_CONVERTER
    try:
        return LIBRARY[section][name](ENGINES[engine], model)
    except Exception as error:
        return f"wrong: {type(error).__name__}: {error}"


class Server:
    """`first-cpp serve` or llama_cpp.server, on a free port."""

    def __init__(self, engine: str, model: str) -> None:
        self.engine, self._model = engine, model
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def be_there(self) -> None:
        """Start it, unless it answers."""
        if self._process is not None and self._process.poll() is None and self._seconds_to_answer(5) < 5:
            return
        self.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        ours = ["first_cpp", "serve", "-m", self._model, "--alias", "tiny", "-c", "1024", "--logits-all", "-t", "1"]
        stock = ["llama_cpp.server", "--model", self._model, "--model_alias", "tiny", "--n_ctx", "1024", "--n_threads", "1"]
        stock += ["--logits_all", "true"]
        command = [*(ours if self.engine == "first_cpp" else stock), "--port", port]
        command += ["--chat-format" if self.engine == "first_cpp" else "--chat_format", "chatml"]
        self._process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self._seconds_to_answer(1) >= 1:
            time.sleep(0.1)

    def _seconds_to_answer(self, most: float) -> float:
        began = time.monotonic()
        try:
            httpx.get(self.url + HEALTH[self.engine], timeout=most)
        except httpx.HTTPError:
            return most
        return time.monotonic() - began

    def attack(self, sent: Sent) -> str:
        """What comes of a request: "held", or what is wrong; "died" and "hung" are of the process."""
        self.be_there()
        assert self._process is not None
        began = time.monotonic()
        try:
            response = httpx.post(self.url + sent.path, content=sent.body, headers=JSON, timeout=min(SECONDS, 3 * sent.seconds))
        except httpx.HTTPError as error:
            if self._process.poll() is not None:
                return f"died: {self._process.returncode}"
            kind = "hung" if self._seconds_to_answer(QUICK) >= QUICK else "wrong"
            return f"{kind}: {type(error).__name__}"
        took = time.monotonic() - began
        if not _is_right(sent, response):
            return f"wrong: status {response.status_code}: {response.text[:100]}"
        return "held" if took < sent.seconds else f"wrong: after {took:.0f} s"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _is_right(sent: Sent, response: httpx.Response) -> bool:
    try:
        return sent.right(response)
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def attacks(model: str, engines: list[str], done: set[tuple[str, str, str]]) -> Iterator[Row]:
    """All that are not done yet, one by one."""
    for engine in engines:
        server = Server(engine, model)
        try:
            for section, name in [(one, name) for part in (LIBRARY, SERVER) for one in part for name in part[one]]:
                if (engine, section, name) in done:
                    continue
                if section in LIBRARY:
                    came = library_attack(section, name, engine, model)
                else:
                    came = server.attack(SERVER[section][name])
                yield {"engine": engine, "section": section, "name": name, "came": came}
        finally:
            server.stop()


def of_files(paths: list[str]) -> list[Row]:
    """What fuzz_open.py wrote, as rows."""
    rows = []
    for engine, path in zip(ENGINES, paths, strict=True):
        for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            kind = case["came"].split(":")[0]
            came = {"answered": "held", "refused": "held", "unnamed": "wrong"}.get(kind, kind)
            rows.append({"engine": engine, "section": "model files", "name": str((case["seed"], case["case"])), "came": came})
    return rows


def table(rows: list[Row]) -> str:
    """Counts by section, first_cpp beside stock."""
    lines = [
        "| attacks | tried | first_cpp holds | stock holds | stock dies | stock hangs | stock is wrong |",
        "| --- |" + " ---: |" * 6,
    ]
    there = {row["section"] for row in rows}
    for section in (one for one in (*LIBRARY, *SERVER, "model files") if one in there):
        counts = {
            engine: Counter(row["came"].split(":")[0] for row in rows if (row["section"], row["engine"]) == (section, engine))
            for engine in ENGINES
        }
        ours, stock = counts["first_cpp"], counts["stock"]
        cells = [section, ours.total(), ours["held"], *(stock[kind] for kind in ("held", "died", "hung", "wrong"))]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, help="one of the two; by default both")
    parser.add_argument("--out", default="build/attacks.jsonl", help="JSON lines (default: %(default)s)")
    parser.add_argument("--files", nargs=2, metavar=("OURS", "STOCK"), help="what fuzz_open.py --out wrote for each")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; a second run goes on")
    parser.add_argument("--write", action="store_true", help="put the table into docs/internals/faults.md")
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    end = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        model = str(pathlib.Path(folder) / "tiny.gguf")
        write_random(model, SHAPES["tiny"])
        for row in attacks(
            model, [args.engine] if args.engine else [*ENGINES], {(row["engine"], row["section"], row["name"]) for row in rows}
        ):
            rows.append(row)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if row["engine"] == "first_cpp" and row["came"] != "held":
                print(f"{row['section']}: {row['name']}: {row['came']}", flush=True)
            if time.monotonic() > end:
                return 1
    rows += of_files(args.files) if args.files else []
    print(table(rows))
    if args.write:
        fill(str(PAGE), "tests/attacks", table(rows))
    return int(any(row["engine"] == "first_cpp" and row["came"] != "held" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
