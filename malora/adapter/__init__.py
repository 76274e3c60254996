"""The PEFT tuner: the adapter's configuration, equation, layers and model, and what is counted of it."""
