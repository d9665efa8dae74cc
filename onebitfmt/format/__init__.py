"""The bundle format: manifest, strict JSON, safetensors layout. Standard library only."""
