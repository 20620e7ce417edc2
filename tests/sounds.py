"""Sounds for tests: waves, and files of them in the usual formats."""

import io
import wave

import av
import numpy as np

FORMATS = {  # of a file: its codec, the formats of samples are the codec's
    "wav": "pcm_s16le",
    "flac": "flac",
    "ogg": "libopus",
    "mp3": "libmp3lame",
    "mp4": "aac",
    "matroska": "pcm_s16le",
}


def tone(seconds=1.0, rate=16_000, hertz=(440.0,), loud=0.4):
    """A float32 wave [N,C], one sine for each channel."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([loud * np.sin(2 * np.pi * own * time) for own in hertz], axis=1).astype(np.float32)


def noise(seconds=1.0, rate=16_000, channels=1, seed=0, loud=0.1):
    """White noise, float32 [N,C]."""
    return (loud * np.random.default_rng(seed).normal(size=(round(seconds * rate), channels))).astype(np.float32)


def pcm_of(made):
    """A wave as int16 [N,C]."""
    return np.round(np.clip(made, -1, 1) * 32767).astype(np.int16)


def wav_of(made, rate=16_000):
    """A wave as the bytes of a wav file, by the standard library."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((made.shape[1], 2, rate, 0, "NONE", ""))
        file.writeframes(pcm_of(made).astype("<i2").tobytes())
    return out.getvalue()


def encoded(made, form, rate=16_000):
    """A wave [N,1 or 2] as the bytes of a file of a format."""
    out, layout = io.BytesIO(), ("mono", "stereo")[made.shape[1] - 1]
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(FORMATS[form], rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(pcm_of(made).reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return out.getvalue()


def film(seconds=1.0, made=None, rate=16_000):
    """A small mp4 of grey pictures, with a wave as its sound or none."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = None if made is None else container.add_stream("aac", rate=rate, layout="mono")
        for number in range(round(10 * seconds)):
            pixels = np.full((32, 32, 3), 10 * number % 255, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(pcm_of(made).reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = rate
            for part in av.AudioResampler(audio.codec_context.format, "mono", rate).resample(frame):
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    return out.getvalue()
