"""Reading pools and benchmarks: LLaVA-format records, images, prompts."""
