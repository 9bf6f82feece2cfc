"""The paper's Tables 2 to 6: what they need as data, how their runs are planned, and how they are written down."""
