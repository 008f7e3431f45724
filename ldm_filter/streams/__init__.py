"""The filter of a stream in parts: clock, encoder and model on arrays, the step, and what it remembers."""
