"""Task vectors to one model: merge methods, recipes and the engine that streams them."""
