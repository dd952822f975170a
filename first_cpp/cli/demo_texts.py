"""Texts of the demo: what it asks, and what block influence is measured on for a model without routers."""

from __future__ import annotations

EVERYDAY = {
    "sleep": "Give me three tips for falling asleep faster, one sentence each.",
    "email": "Write a short, polite email to my landlord: the heating in my flat has been broken since Monday.",
    "sky": "Explain to a ten-year-old why the sky is blue.",
}
"""What any chat model is asked: a short name, and the prompt."""

TRAINED = {
    "question": (
        "The lighthouse on Skerry Point was built in 1846 after two ships were lost in one winter. Its lamp first burned "
        "whale oil, then paraffin, and since 1971 it has been electric. The last keeper, Anna Moor, left in 1988, when the "
        "light was made automatic. Her logbooks are kept in the town library.\nQuestion: Who was the last keeper?"
    ),
    "abstract": (
        "Write a one-sentence summary (TLDR) of this abstract:\nNeural networks that forecast the load of power grids are "
        "trained on years of readings, and fail when a city changes its habits. We present a method that keeps a small memory "
        "of recent weeks beside the network and corrects its forecast by the errors made on the most similar days. The memory "
        "needs no training and can be refilled every night. On readings of three cities the error falls by a quarter in the "
        "months after a change, and stays the same at other times."
    ),
    "dialogue": (
        "Summarize the dialogue:\n#Person1#: The bakery on our street closes at the end of the month.\n#Person2#: Oh no. "
        "Where will we get bread on Sundays?\n#Person1#: There is one by the station, but it opens only at nine.\n#Person2#: "
        "Then I will bake on Saturdays. Could you buy flour on your way home?\n#Person1#: Sure, I will bring two bags."
    ),
}
"""What the bundled adapter was trained for, questions and abstracts, and a dialogue, which it never saw."""

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
