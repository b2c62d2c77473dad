"""Real photographs: a small LLaVA of published parts, and what it measures."""
