"""The only room that knows MindFormers: configuration, tokenizer class, rank entry point, CPU compatibility."""
