"""Videos that tests write with PyAV, whose frames tell their numbers by how light they are."""

import io

import numpy as np


def grey(number, width=48, height=32):
    """A frame uint8 [H,W,3]: 8 * (number % 30) + 10 everywhere, and its left third 12 darker, so that a flip shows."""
    image = np.full((height, width, 3), 8 * (number % 30) + 10, np.uint8)
    image[:, : width // 3] -= 9
    return image


def number_of(image):
    """The number (below 30) of a frame, decoded and maybe resized, from its right half."""
    pixels = np.asarray(image, np.float64)
    return round((pixels[:, pixels.shape[1] // 2 :].mean() - 10) / 8)


def video_bytes(images, rate=10, kind="mp4", codec="mpeg4", sound=False, **options):
    """The bytes of a video of frames uint8 [H,W,3]; with `sound`, of a tone as long beside them."""
    import av

    file, images = io.BytesIO(), list(images)
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        tone = container.add_stream("aac", rate=16000) if sound else None
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
        if tone is not None:
            wave = (8000 * np.sin(np.arange(16000 * len(images) // rate) / 9)).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.sample_rate = 16000
            container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
    return file.getvalue()


def sound_bytes():
    """A file of a tone without any picture."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        tone = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(tone.encode(frame))
        container.mux(tone.encode(None))
    return file.getvalue()


def moving_picture(images, kind="GIF", seconds=0.2):
    """The bytes of a GIF, WebP or PNG that moves."""
    from PIL import Image

    file, first, *more = io.BytesIO(), *map(Image.fromarray, images)
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(file, kind, save_all=True, append_images=more, duration=round(1000 * seconds), loop=0, **options)
    return file.getvalue()
