"""The Hugging Face Hub: addresses, errors in plain words, and snapshots of which files are checked.

Nothing here knows what a bundle is. huggingface_hub takes half a second to load, so that functions
import it and modules do not.
"""
