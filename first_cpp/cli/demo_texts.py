"""Texts of the demo: what it asks, and what block influence is measured on for a model without routers."""

from __future__ import annotations

EVERYDAY = {
    "summary": (
        "Summarise this text in a few sentences.\n\nA farmer found a young eagle that had fallen out of its nest. He "
        "took it home and raised it with his chickens. It ate corn and scratched in the yard as they did, and never "
        "tried to fly. One day a traveller saw it, carried it up a hill and turned it towards the sun. The eagle "
        "looked around, spread its wings and flew away. It did not come back."
    ),
    "review": (
        "Rewrite this review so that it sounds more polite.\n\nThe room was tiny and it smelled. The breakfast was cold, "
        "the coffee was bad and nobody said hello. At night we could hear every car in the street. The only good thing "
        "was the bed. I will never come back and I tell everybody not to go there."
    ),
    "morning": (
        "Rewrite this paragraph in the past tense.\n\nEvery morning Lena gets up at six, makes tea and looks out of the "
        "window. The street is still dark, and only the baker's lamp is on. She feeds the cat, puts on her red coat "
        "and walks to the station. On the train she reads the newspaper or sleeps. At eight she opens the library, "
        "switches on the lights and waits for the first visitors."
    ),
}
"""What anybody asks: a short name, and the prompt. They are of the kinds that can spare layers, which prompts without a text of
their own often cannot."""

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
