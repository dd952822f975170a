"""Three prompts on SmolLM2-135M, answered dense by stock llama_cpp.Llama and with fewer layers by first_cpp.Llama."""

from __future__ import annotations

import argparse
import os
import tempfile

import llama_cpp

from ..gguf.bundled import DEMO_ADAPTER, find_adapter, find_demo_model
from ..gguf.routers import Routers
from ..runtime.chat_prompt import chat_prompt
from ..runtime.greedy import TimedAnswer, answer_timed
from ..runtime.routing import picture
from .execute import add_debug
from .options import shares_from_text

PROMPTS = {
    "a question on a paragraph": (
        "The lighthouse on Skerry Point was built in 1846 after two ships were lost in one winter. Its lamp first burned "
        "whale oil, then paraffin, and since 1971 it has been electric. The last keeper, Anna Moor, left in 1988, when the "
        "light was made automatic. Her logbooks are kept in the town library.\nQuestion: Who was the last keeper?"
    ),
    "an abstract": (
        "Write a one-sentence summary (TLDR) of this abstract:\nNeural networks that forecast the load of power grids are "
        "trained on years of readings, and fail when a city changes its habits. We present a method that keeps a small memory "
        "of recent weeks beside the network and corrects its forecast by the errors made on the most similar days. The memory "
        "needs no training and can be refilled every night. On readings of three cities the error falls by a quarter in the "
        "months after a change, and stays the same at other times."
    ),
    "a dialogue": (
        "Summarize the dialogue:\n#Person1#: The bakery on our street closes at the end of the month.\n#Person2#: Oh no. "
        "Where will we get bread on Sundays?\n#Person1#: There is one by the station, but it opens only at nine.\n#Person2#: "
        "Then I will bake on Saturdays. Could you buy flour on your way home?\n#Person1#: Sure, I will bring two bags."
    ),
}
# Other texts than the prompts: what block influence is measured on.
CALIBRATION = (
    "The river rises in the hills, runs through three towns and reaches the sea near the old harbour.",
    "Question: What do bees collect from flowers? Answer: Bees collect nectar and pollen.",
    "Please explain in simple words how a bicycle stays upright while it is moving.",
    "In short: sales grew in spring, fell in summer and were steady for the rest of the year.",
    "Dear team, thank you for your patience; the new schedule will be sent to you tomorrow morning.",
    "Photosynthesis is the process by which plants turn light, water and carbon dioxide into sugar and oxygen.",
    "She opened the letter, read it twice, and then put it back into the drawer without a word.",
    "def area(radius): return 3.14159 * radius ** 2  # the area of a circle",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", help="a GGUF chat model (default: the one of the demo extra, with trained routers)")
    parser.add_argument("--skip", default="0.1,0.25", help="shares of layers to leave out (default: %(default)s)")
    parser.add_argument("-n", "--max-tokens", type=int, default=64, help="longest answer in tokens (default: %(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count(), help="threads (default: all, %(default)s)")
    add_debug(parser)


def command(args: argparse.Namespace) -> None:
    from ..llama import Llama

    shares = shares_from_text(args.skip)
    settings = {"n_ctx": 1024, "n_threads": args.threads, "n_threads_batch": args.threads, "verbose": False}
    with tempfile.TemporaryDirectory() as folder:
        model, routers = _with_influence(args.model) if args.model else _with_trained_routers(folder)
        stock = llama_cpp.Llama(model, **settings)
        routed = Llama(model, routers=routers, skip=None, **settings)
        answer_timed(stock, stock.tokenize(b"Warm up."), 8)
        for title, text in PROMPTS.items():
            _compare(title, text, stock, routed, shares, args.max_tokens)
        print(
            "TTFT: time to first token. TPOT: median time per token after it; speed-up: TPOT of stock / this.\n"
            "Layers: # computed for each token, . left out."
        )
        stock.close()
        routed.close()


def _with_trained_routers(folder: str) -> tuple[str, None]:
    """The demo model with the adapter that comes with the package folded in, Q4_0."""
    from ..gguf.merge import merge

    base, merged = find_demo_model(), os.path.join(folder, "model-first.gguf")
    print(f"model    {os.path.basename(base)}")
    merge(find_adapter(DEMO_ADAPTER), base, merged, quantize="Q4_0", quiet=True)
    print(
        "routers  trained, with a LoRA folded into the weights (now Q4_0), on questions about a paragraph and on abstracts.\n"
        "         A dialogue is a kind of prompt that they never saw. To keep the merged model:\n"
        f"         python -m convert --routers {DEMO_ADAPTER} --model MODEL --merge --quantize Q4_0 --out model-first.gguf\n"
    )
    return merged, None


def _with_influence(model: str) -> tuple[str, Routers]:
    """A model without trained routers, and input-blind ones measured here."""
    from ..llama import Llama
    from ..runtime.block_influence import MAX_TOKENS, influence_routers

    print(f"model    {os.path.basename(model)}")
    llm = Llama(model, n_ctx=MAX_TOKENS, skip=None, verbose=False)
    routers = influence_routers(llm, CALIBRATION)
    llm.close()
    print(
        f"routers  input-blind: block influence measured just now on {len(CALIBRATION)} other texts. They do not look at\n"
        "         the prompt, so every prompt loses the same layers, and that costs quality: expect worse answers.\n"
    )
    return model, routers


def _compare(title: str, text: str, stock: llama_cpp.Llama, routed: llama_cpp.Llama, shares: list[float], n: int) -> None:
    prompt = chat_prompt(stock, text)
    print(f"== {title} ({len(prompt)} prompt tokens) ==\n{text}\n")
    stock.reset()
    dense = answer_timed(stock, prompt, n)
    n_layer = llama_cpp.llama_model_n_layer(stock.model)
    _report("stock llama_cpp.Llama, dense", stock, dense, dense, picture((), n_layer))
    for share in shares:
        routed.skip = share
        routed.reset()
        answer = answer_timed(routed, prompt, n)
        skipped = routed.routing.skipped
        _report(f"first_cpp.Llama, skip={share:g}: {len(skipped)} of {n_layer} layers left out", routed, answer, dense,
                picture(skipped, n_layer))  # fmt: skip


def _report(title: str, llm: llama_cpp.Llama, answer: TimedAnswer, dense: TimedAnswer, layers: str) -> None:
    text = llm.detokenize(answer.tokens).decode("utf-8", errors="replace").strip()
    rate = 1 / answer.tpot if answer.tpot else 0.0
    speed_up = dense.tpot / answer.tpot if answer.tpot else 0.0
    print(f"-- {title}")
    print(f"   layers {layers}")
    print(
        f"   TTFT {answer.ttft * 1e3:.0f} ms, TPOT {answer.tpot * 1e3:.2f} ms, {rate:.0f} tokens/s, "
        f"speed-up {speed_up:.2f}x, {len(answer.tokens)} tokens"
    )
    print("   " + text.replace("\n", "\n   ") + "\n")
