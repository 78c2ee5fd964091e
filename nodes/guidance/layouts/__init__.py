"""One file for each attention layout: where its cross-attention lies and how Z- gets there."""
