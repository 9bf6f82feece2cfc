"""The paper's figures on a finished comparison, and the sheet of views."""
