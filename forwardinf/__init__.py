"""forwardinf: which training examples made the model behave like this?"""

__version__ = "0.1.0"
