"""What clients are told of: sections, each with ``initial`` and ``since``, and their assemblers."""
