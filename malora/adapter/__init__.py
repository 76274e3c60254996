"""The PEFT tuner: the adapter's configuration, equation, layers and model, and what is counted of it."""

import peft  # noqa: F401  # before any module of this room: it imports model, which registers the tuner
