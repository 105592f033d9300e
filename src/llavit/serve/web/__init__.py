"""The web page: ask one model, or two side by side, about pictures (`page.py`)."""
