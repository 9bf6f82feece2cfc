"""Training of students and teachers."""
