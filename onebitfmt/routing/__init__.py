"""From a prompt to an expert: features of prompts, a trained router, its decisions."""
