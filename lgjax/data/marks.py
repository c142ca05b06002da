def draw(image, record):
    return image
