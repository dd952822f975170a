"""Puts a training run and its evaluation into the package: weights in F16, and a card whose figures are the evaluation's.

    python tools/ship_adapter.py RUN REPORT NAME --base "SmolLM2-135M-Instruct" --about about.md \\
        [--routers calibrated.gguf --fidelity 0.85]

RUN is what `first-cpp train` left, REPORT what `first-cpp eval` left, about.md says what no file knows: data and licences.
--routers: a file whose routers take the place of the run's, such as `first-cpp calibrate` wrote for the trained weights;
--fidelity: with the largest tolerance of its table that keeps so much.
The tables of REPORT go into research/notes.md as well; `make docs` then takes what users read from the card.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil

from marks import NOTES, fill
from safetensors.numpy import load_file, save_file

from first_cpp.evaluate.report import markdown
from first_cpp.gguf.bundled import FOLDER
from first_cpp.gguf.router_format import load_routers, write_safetensors
from first_cpp.gguf.routers import Routers

LIMIT = 12_000_000


def read_json(*parts: str) -> dict:
    with open(os.path.join(*parts), encoding="utf-8") as file:
        return json.load(file)


def with_tolerance(routers: Routers, fidelity: float) -> Routers:
    """The routers, recommending the largest tolerance of their table at which prompts kept out had this fidelity."""
    assert routers.cost is not None, "--fidelity is of routers that `first-cpp calibrate` wrote"
    points = [point for point in routers.cost.table if point.fidelity >= fidelity]
    return dataclasses.replace(
        routers, cost=dataclasses.replace(routers.cost, tolerance=points[-1].tolerance, fidelity=fidelity)
    )


def copy_weights(run: str, out: str, base: str, routers: Routers | None) -> None:
    """Routers of the run, or others; the adapter in F16, and without the path that the base had on the machine of the run."""
    os.makedirs(os.path.join(out, "adapter"), exist_ok=True)
    if routers is None:
        shutil.copy(os.path.join(run, "routers.safetensors"), out)
    else:
        write_safetensors(out, routers)
    name = os.path.join("adapter", "adapter_model.safetensors")
    weights = {key: value.astype("float16") for key, value in load_file(os.path.join(run, name)).items()}
    save_file(weights, os.path.join(out, name), {"format": "pt"})
    config = read_json(run, "adapter", "adapter_config.json") | {"base_model_name_or_path": base}
    with open(os.path.join(out, "adapter", "adapter_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")


def card(train: dict, report: dict, name: str, base: str, about: str) -> str:
    """The README of an adapter."""
    losses = ", ".join(f"{loss:.3f} at {float(share):g}" for share, loss in train["valid_loss"]["mean"].items())
    seed, machine = train["settings"]["seed"], train.get("machine", report["machine"])
    table = markdown(report).replace("# Evaluation\n", "## Measured\n", 1)
    return f"""# {name}

Routers and LoRA for {base}: {train["method"]}.

    python -m convert --routers {name} --model {base}.gguf --merge --quantize Q4_0 --out model-first.gguf

{about.strip()}

## Training

    {train["command"]}

{train["data"]}; {train["steps"]} steps, seed {seed}, {train["seconds"] / 60:.0f} minutes on {machine}; torch {train["torch"]}.
Validation loss, mean over tasks, by skip share: {losses}.

{table.strip()}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("report")
    parser.add_argument("name")
    parser.add_argument("--base", required=True)
    parser.add_argument("--about", required=True)
    parser.add_argument("--routers")
    parser.add_argument("--fidelity", type=float)
    args = parser.parse_args()
    out = os.path.join(FOLDER, args.name)
    with open(args.about, encoding="utf-8") as file:
        about = file.read()
    report = read_json(args.report, "report.json")
    text = card(read_json(args.run, "train.json"), report, args.name, args.base, about)
    routers = load_routers(args.routers) if args.routers else None
    copy_weights(args.run, out, args.base, with_tolerance(routers, args.fidelity) if routers and args.fidelity else routers)
    with open(os.path.join(out, "README.md"), "w", encoding="utf-8") as file:
        file.write(text)
    fill(NOTES, f"tools/ship_adapter.py {args.name}", markdown(report).replace("# Evaluation\n", ""))
    size = sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(out) for name in names)
    if size > LIMIT:
        raise SystemExit(f"{out} has {size} bytes, allowed: {LIMIT}")
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
