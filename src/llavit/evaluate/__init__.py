"""Asking many questions and scoring the answers."""
