"""What is known of writing: scripts, sentence ends, numbers, tokens, marks of chat templates, and which language a text is in."""
