"""The parts of the built-in demo model: its words, tokenizer, weights and folder."""
