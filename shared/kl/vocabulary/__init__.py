"""Divergences of language-model vocabularies, in bounded memory."""
