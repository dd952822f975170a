"""`first-cpp` with a model that says what a test wrote: prompts, layers and times are the real ones, the text is not.

SCRIPT: the answer. PAUSE: seconds between two of its words. WAIT: seconds of prefill, with what is then shown.
WITHOUT: packages that are not to be found.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time

for name in filter(None, os.environ.get("WITHOUT", "").split(",")):
    sys.modules[name] = None

from first_cpp import Llama  # noqa: E402
from first_cpp.cli import main, model_options  # noqa: E402


class Scripted(Llama):
    _waits = False

    @property
    def prompt_progress(self):
        return (512, 2048) if self._waits else super().prompt_progress

    def create_chat_completion(self, *args, **kwargs):
        self._waits = True
        time.sleep(float(os.environ.get("WAIT", "0")))
        self._waits = False
        words = re.findall(r"\S*\s*", os.environ["SCRIPT"])
        chunks = super().create_chat_completion(*args, **kwargs)
        for word, chunk in itertools.zip_longest(words, chunks):
            time.sleep(float(os.environ.get("PAUSE", "0")))
            if word:
                yield {"choices": [{"delta": {"content": word}}]}
            elif chunk is not None and words[0] == "":
                yield chunk


model_options.Llama = Scripted
sys.exit(main.main())
