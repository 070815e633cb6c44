"""What xtoken raises when the caller can put it right.

One base class, and it is a `ValueError`: whoever wraps our calls can catch the standard type. A message says what was
given, what was expected, where, and the way out; the command line prints it alone, without a traceback.
"""


class XTokenError(ValueError):
    """A mistake in what was asked of xtoken, told so that the reader can mend it."""


class DivergedError(XTokenError):
    """A loss that is not finite ended the training; the message names the step, the term and the last checkpoint."""


class UnsupportedTokenizerError(XTokenError):
    """A tokenizer whose tokens cannot be given bytes exactly."""


class FingerprintMismatchError(XTokenError):
    """An artifact made for one tokenizer was used with another."""
