"""Safe decoding of strangers' pictures, and drawing. Knows no model."""
from PIL import Image
def to_rgb(i): return i.convert("RGB")
