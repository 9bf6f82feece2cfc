"""How the students and teachers of a finished comparison do on corrupted images and on other images of the same classes."""
