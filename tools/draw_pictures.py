#!/usr/bin/env python3
"""Draw the demo's pictures: landscapes, fractals, patterns and spheres, made of numpy alone.

    tools/draw_pictures.py demo/pictures

The same pictures come out each time: every one has a random generator of its own, seeded with its
name's place in the list.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.floating[Any]]  # [height, width]
Colour = NDArray[np.floating[Any]]  # [height, width, 3], 0 to 1
Rng = np.random.Generator


# -- fields and colours ----------------------------------------------------------------------


def grid(side: int) -> tuple[Field, Field]:
    """Pixel centres as (x, y) in 0 to 1, y downwards."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = np.meshgrid(axis, axis)
    return x, y


def clouds(rng: Rng, side: int, slope: float, lowest: float = 1.0) -> Field:
    """Fractal noise, tileable, mean 0 and deviation 1: amplitude falls as frequency ** -slope."""
    fy = np.fft.fftfreq(side)[:, None] * side
    fx = np.fft.rfftfreq(side)[None] * side
    frequency = np.hypot(fx, fy)
    amplitude = np.where(frequency < lowest, 0, np.maximum(frequency, 1) ** -slope)
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * amplitude
    field = np.fft.irfft2(spectrum, s=(side, side))
    return np.asarray(field / field.std(), np.float32)


def sample(field: Field, x: Field, y: Field) -> Field:
    """Read a tileable field at (x, y), where 1 is its whole width, between its points linearly."""
    height, width = field.shape
    px, py = x * width - 0.5, y * height - 0.5
    left, top = np.floor(px).astype(np.int64), np.floor(py).astype(np.int64)
    u, v = (px - left).astype(np.float32), (py - top).astype(np.float32)
    left, top = left % width, top % height
    right, bottom = (left + 1) % width, (top + 1) % height
    upper = field[top, left] * (1 - u) + field[top, right] * u
    lower = field[bottom, left] * (1 - u) + field[bottom, right] * u
    return np.asarray(upper * (1 - v) + lower * v, np.float32)


def smoothstep(low: float, high: float, value: Field) -> Field:
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def rgb(hexadecimal: str) -> Colour:
    return np.array([int(hexadecimal[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255


def ramp(stops: str, value: Field) -> Colour:
    """Colours between the stops, which are "position:rrggbb" in rising order."""
    pairs = [stop.split(":") for stop in stops.split()]
    positions = [float(position) for position, _ in pairs]
    colours = np.stack([rgb(text) for _, text in pairs])
    channels = [np.interp(value, positions, colours[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def blend(below: Colour, above: Colour, opacity: Field | float) -> Colour:
    alpha = np.asarray(opacity, np.float32)
    alpha = alpha[..., None] if alpha.ndim else alpha
    return np.asarray(below * (1 - alpha) + above * alpha, np.float32)


def relief(height: Field, strength: float, *, azimuth: float = 2.3, tilt: float = 0.8) -> Field:
    """Light on a height field from the upper left: 0 in shadow, 1 facing the light."""
    dy, dx = np.gradient(height * strength)
    norm = np.sqrt(dx * dx + dy * dy + 1)
    towards = np.cos(azimuth) * dx * -1 + np.sin(azimuth) * dy
    light = (towards * np.cos(tilt) + np.sin(tilt)) / norm
    return np.asarray(np.clip(light, 0, 1), np.float32)


def shrink(picture: Colour, side: int) -> Colour:
    """Average blocks of pixels, for smooth edges."""
    factor = picture.shape[0] // side
    return np.asarray(picture.reshape(side, factor, side, factor, 3).mean((1, 3)), np.float32)


def stars(rng: Rng, side: int, count: int) -> Colour:
    sky = np.zeros((side + 8, side + 8, 3), np.float32)
    offsets = np.arange(-3, 4)
    for _ in range(count):
        column, row = rng.integers(4, side + 4, 2)
        brightness = rng.pareto(2.2) * 0.22 + 0.1
        radius = 0.55 + min(brightness, 1.2) * 0.6
        spot = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * radius**2))
        tint = blend(rgb("ffd9b0"), rgb("bcd4ff"), float(rng.random()))
        sky[row - 3 : row + 4, column - 3 : column + 4] += spot[..., None] * tint * brightness
    return sky[4:-4, 4:-4]


# -- landscapes ------------------------------------------------------------------------------


def ridge(rng: Rng, side: int, *, base: float, rise: float, cells: float) -> Field:
    """A skyline: for each column, its height in the picture (0 top, 1 bottom)."""
    x = np.linspace(0, 1, side, dtype=np.float32)
    line = np.zeros(side, np.float32)
    amplitude, frequency = 1.0, cells
    for _ in range(8):
        knots = rng.standard_normal(int(frequency) + 3)
        position = x * frequency + rng.random()
        line += np.interp(position, np.arange(len(knots)), knots) * amplitude
        amplitude *= 0.47
        frequency *= 2.03
    return np.asarray(base - rise * line, np.float32)


def mountains(rng: Rng, side: int) -> Colour:
    x, y = grid(side)
    sky = "0:141a3c 0.25:3a2f66 0.45:8d4b7b 0.58:e2795f 0.68:ffc27a"
    picture = ramp(sky, y + 0.03 * sample(clouds(rng, 256, 1.8), x * 0.4, y * 1.5))
    night = smoothstep(0.45, 0.05, y)
    picture += stars(rng, side, 260) * night[..., None]
    distance = np.hypot(x - 0.64, (y - 0.5) * 1.05)
    glow = np.exp(-((distance / 0.2) ** 2)) * 0.55 + smoothstep(0.052, 0.048, distance)
    picture = blend(picture, rgb("fff0c8"), np.clip(glow, 0, 1))
    bands = sample(clouds(rng, 256, 1.7), x * 0.5 + 0.2, y * 3)
    veil = smoothstep(0.3, 1.8, bands) * smoothstep(0.62, 0.4, y) * 0.55
    picture = blend(picture, rgb("ff9a7e"), veil)
    near, haze = rgb("0b1024"), rgb("d98272")
    layers = 6
    for layer in range(layers):
        depth = layer / (layers - 1)
        skyline = ridge(rng, side, base=0.55 + 0.36 * depth, rise=0.05 + 0.012 * layer, cells=3)
        below = (y - skyline[None]) * side
        colour = blend(haze, near, depth**0.6)
        mist = np.clip(below / side / 0.3, 0, 1) * 0.35 * (1 - depth)
        shaded = blend(np.broadcast_to(colour, picture.shape), haze, mist)
        picture = blend(picture, shaded, np.clip(below + 0.5, 0, 1))
    return picture


def lake(rng: Rng, side: int) -> Colour:
    """Mountains by moonlight over still water."""
    x, y = grid(side)
    horizon = 0.6
    sky = "0:050b22 0.3:10305a 0.5:2f6d8c 0.62:a5cfc4"
    scene = ramp(sky, y)
    scene += stars(rng, side, 600) * smoothstep(0.5, 0.1, y)[..., None]
    distance = np.hypot(x - 0.3, y - 0.2)
    craters = sample(clouds(rng, 256, 1.6), x * 2, y * 2)
    scene = blend(scene, rgb("9fc7e6"), np.exp(-((distance / 0.16) ** 2)) * 0.45)
    disc = blend(np.broadcast_to(rgb("fff8e4"), scene.shape), rgb("d8cdb4"), craters * 0.25 + 0.2)
    scene = blend(scene, disc, smoothstep(0.062, 0.059, distance))
    aurora_x = x + 0.05 * sample(clouds(rng, 256, 2.2), x, y * 0.6)
    rays = 0.5 + 0.5 * np.sin(aurora_x * 38 + 6 * sample(clouds(rng, 256, 2.5), x, y * 0.2))
    curtain = np.exp(-(((y - 0.33 - 0.09 * np.sin(aurora_x * 7)) / 0.11) ** 2))
    curtain *= 0.25 + 0.75 * smoothstep(0.35, 0.75, x)
    scene = blend(scene, rgb("58f0b4"), np.clip(curtain * (0.3 + 0.35 * rays), 0, 1))
    heights = clouds(rng, 1024, 1.75)
    for depth, base, rise in ((0.0, 0.5, 0.055), (0.5, 0.54, 0.045), (1.0, 0.585, 0.022)):
        skyline = ridge(rng, side, base=base, rise=rise, cells=4)
        below = (y - skyline[None]) * side
        light = relief(sample(heights, x + depth * 0.37, y + depth * 0.11), 9.0)
        rock = blend(rgb("33597a"), rgb("081524"), depth)
        lit = blend(np.broadcast_to(rock, scene.shape), rgb("b8d6e8"), light * 0.35 * (1 - depth))
        scene = blend(scene, lit, np.clip(below + 0.5, 0, 1))
    water = y > horizon
    swell = sample(clouds(rng, 512, 1.2), x * 0.35, y * 3.2)
    ripple = swell * 0.02 * smoothstep(horizon - 0.01, 1.0, y)
    mirrored_row = np.clip((2 * horizon - y + ripple * 1.5) * side, 0, side - 1).astype(np.int64)
    mirrored_column = np.clip((x + ripple * 0.25) * side, 0, side - 1).astype(np.int64)
    mirrored = scene[mirrored_row, mirrored_column] * np.float32(0.72)
    mirrored = blend(mirrored, rgb("061626"), smoothstep(horizon, 1.25, y) * 0.6)
    return np.where(water[..., None], mirrored, scene)


def island(rng: Rng, side: int) -> Colour:
    """A map: sea, beaches, woods, rock and snow, with the light from the upper left."""
    x, y = grid(side)
    warp_x, warp_y = clouds(rng, 512, 2.2), clouds(rng, 512, 2.2)
    wx = x + 0.035 * sample(warp_x, x, y)
    wy = y + 0.035 * sample(warp_y, x, y)
    height = sample(clouds(rng, 512, 1.95), wx, wy) * 0.34
    height = height + 0.95 - 2.3 * ((x - 0.5) ** 2 + (y - 0.5) ** 2) ** 0.5
    land = (
        "0:0c2f57 0.3:145a86 0.44:2b93ac 0.495:86d5cc 0.5:f0e2b6 0.53:d9c789 "
        "0.56:7fae57 0.68:3d7a42 0.8:5f6b48 0.9:8a8078 1.02:d8d8dc 1.12:ffffff"
    )
    picture = ramp(land, 0.5 + height * 0.6)
    light = relief(height, 70.0)
    shade = np.where(height > 0, 0.5 + 0.8 * light, 0.93 + 0.07 * light)
    return np.asarray(picture * shade[..., None], np.float32)


def dunes(rng: Rng, side: int) -> Colour:
    x, y = grid(side)
    depth = 1 / (y * 1.5 + 0.12)
    wind = clouds(rng, 512, 2.6)
    across, along = (x - 0.5) * depth * 0.55, depth * 0.42
    drift = sample(wind, across, along)
    phase = (along * 5.5 + drift * 0.42 + across * 0.6) % 1
    crest = np.where(phase < 0.72, phase / 0.72, (1 - phase) / 0.28)
    lit = np.where(phase < 0.72, 0.62 + 0.38 * crest, 0.16 + 0.3 * (1 - crest))
    ripples = np.sin(along * 90 + across * 30 + drift * 20) * smoothstep(0.25, 0.8, y)
    light = lit + 0.035 * ripples * (phase < 0.72)
    sand = "0:3b1410 0.25:7d2f1d 0.55:cf6d34 0.8:f2a65a 1:ffd99a"
    haze = smoothstep(0.62, 0.26, y)
    picture = blend(ramp(sand, light), rgb("f5c79b"), haze * 0.75)
    sky = "0:2d6fa6 0.16:7fb3cc 0.3:fbdcb0"
    skyline = 0.285 + 0.012 * drift[int(side * 0.3)][None]
    return blend(ramp(sky, y), picture, np.clip((y - skyline) * side, 0, 1))


def planet(rng: Rng, side: int) -> Colour:
    x, y = grid(side)
    u, v = (x - 0.54) / 0.36, (y - 0.5) / 0.36
    radius = np.hypot(u, v)
    z = np.sqrt(np.clip(1 - radius**2, 0, 1))
    longitude = np.arctan2(u, np.maximum(z, 1e-3)) / (2 * np.pi) + 0.1
    latitude = np.arcsin(np.clip(v, -1, 1)) / np.pi + 0.5
    warp = 0.02 * sample(clouds(rng, 512, 2.0), longitude, latitude * 0.5)
    ground = sample(clouds(rng, 1024, 1.85), longitude + warp, latitude * 0.5)
    surface = "-1.5:041a3d -0.2:0d4a7d 0.2:2792a8 0.26:d7c794 0.45:56803f 1.1:8f7a50 1.7:e8e6e0"
    colour = ramp(surface, ground)
    colour = blend(colour, rgb("f4f8ff"), smoothstep(0.8, 0.93, np.abs(v) + 0.03 * ground))
    twist = sample(clouds(rng, 512, 2.3), longitude + 0.3, latitude * 0.5)
    weather = sample(
        clouds(rng, 1024, 1.5), longitude + 0.03 * twist, latitude * 0.6 + 0.02 * twist
    )
    colour = blend(colour, rgb("ffffff"), smoothstep(0.35, 1.9, weather) * 0.9)
    sun = np.clip(-0.72 * u - 0.42 * v + 0.55 * z, 0, 1)
    colour = colour * (0.015 + 1.15 * sun[..., None] ** 0.8)
    rim = np.exp(-(((radius - 1) / 0.045) ** 2)) * np.clip(-0.72 * u - 0.42 * v + 0.25, 0, 1)
    space = stars(rng, side, 500)
    dust = clouds(rng, side, 1.9)
    space += ramp("0:02030a 1.5:1b1440 3:4a2a66", np.abs(dust) * (1.2 - y))
    edge = np.clip((1 - radius) * side * 0.36, 0, 1)
    picture = blend(space, colour, edge)
    return np.asarray(picture + rim[..., None] * rgb("5fb4ff"), np.float32)


def nebula(rng: Rng, side: int) -> Colour:
    x, y = grid(side)
    first, second = clouds(rng, 512, 1.9), clouds(rng, 512, 1.9)
    wx = x + 0.09 * sample(first, x, y)
    wy = y + 0.09 * sample(second, x, y)
    gas = sample(clouds(rng, 512, 1.7), wx, wy) * 0.5 + 0.5
    veil = sample(clouds(rng, 512, 1.6), wx + 0.3, wy + 0.1) * 0.5 + 0.5
    middle = np.exp(-(((x - 0.52) ** 2 + (y - 0.47) ** 2) / 0.14))
    teal = "0:03040f 0.5:0c3550 1:2aa7a6 1.6:d9fff0"
    rose = "0:000000 0.5:4a1242 1:d8437a 1.6:ffd9a8"
    picture = ramp(teal, gas * middle * 1.35) + ramp(rose, veil * middle * 1.15) * np.float32(0.8)
    dust = smoothstep(0.4, 1.7, sample(clouds(rng, 512, 1.8), wx + 0.5, wy + 0.6))
    picture = picture * (1 - 0.8 * dust[..., None])
    return np.asarray(picture + stars(rng, side, 420), np.float32)


# -- fractals --------------------------------------------------------------------------------


def escape(z: NDArray[np.complex64], c: NDArray[np.complex64], limit: int) -> tuple[Field, Field]:
    """Iterate z*z + c: (smooth count, -1 where it never escapes; closest it came to the axes)."""
    count = np.full(z.size, -1, np.float32)
    trap = np.full(z.size, 9, np.float32)
    where = np.arange(z.size)
    zs, cs = z.ravel(), c.ravel()
    for step in range(limit):
        zs = zs * zs + cs
        trap[where] = np.minimum(trap[where], np.minimum(np.abs(zs.real), np.abs(zs.imag)))
        size = zs.real**2 + zs.imag**2
        out = size > 256
        if out.any():
            count[where[out]] = step + 1 - np.log2(np.log2(size[out]) / 2)
            keep = ~out
            zs, cs, where = zs[keep], cs[keep], where[keep]
            if not where.size:
                break
    return count.reshape(z.shape), trap.reshape(z.shape)


def julia(side: int, c: complex, zoom: float, turn: float, limit: int) -> tuple[Field, Field]:
    x, y = grid(side * 2)
    plane = ((x - 0.5) + 1j * (y - 0.5)) * (zoom * np.exp(1j * turn))
    z = plane.astype(np.complex64)
    return escape(z, np.full_like(z, c), limit)


def julia_ember(rng: Rng, side: int) -> Colour:
    count, trap = julia(side, -0.7269 + 0.1889j, 2.35, 0.25, 170)
    glow = "0:0a0611 0.25:3a0d2a 0.45:a02b2c 0.65:f07c2a 0.85:ffd873 1:fffbe6"
    picture = ramp(glow, np.clip(np.log1p(np.maximum(count, 0)) / np.log(171), 0, 1) ** 1.25)
    picture = blend(picture, rgb("fff4d0"), np.exp(-trap * 60) * 0.35 * (count > 0))
    return shrink(np.where(count[..., None] < 0, rgb("0a0611"), picture), side)


def julia_frost(rng: Rng, side: int) -> Colour:
    count, trap = julia(side, -0.8 + 0.156j, 2.6, -0.45, 200)
    ice = "0:f3fbff 0.3:b6e0f0 0.5:5aa9cf 0.68:2b5f9e 0.85:1d2a63 1:130f33"
    tone = np.clip(np.log1p(np.maximum(count, 0)) / np.log(120), 0, 1)
    light = relief(tone, 60.0)
    picture = ramp(ice, tone) * (0.75 + 0.4 * light[..., None])
    picture = blend(picture, rgb("ffe9f7"), np.exp(-trap * 40) * 0.5 * (tone > 0.35))
    return shrink(np.where(count[..., None] < 0, rgb("130f33"), picture), side)


def seahorses(rng: Rng, side: int) -> Colour:
    x, y = grid(side * 2)
    c = (-0.7453 + 0.1127j) + ((x - 0.5) + 1j * (y - 0.5)) * 0.0095
    c = c.astype(np.complex64)
    count, _ = escape(np.zeros_like(c), c, 260)
    tone = np.clip(np.log(np.maximum(count, 16) / 16) / np.log(260 / 16), 0, 1)
    shells = (
        "0:071a33 0.2:0f4c6e 0.36:2fa3a3 0.5:f2ecd0 0.62:eda65a 0.76:b8434a 0.9:4b1d4f 1:12081f"
    )
    picture = ramp(shells, tone) * (0.72 + 0.4 * relief(tone, 40.0)[..., None])
    return shrink(np.where(count[..., None] < 0, rgb("0b0614"), picture), side)


# -- patterns --------------------------------------------------------------------------------


def turing(rng: Rng, side: int, wavelength: float, bias: float) -> Field:
    """Spots and stripes as reaction and diffusion grow them: near helps, far hinders."""
    frequency = np.hypot(np.fft.rfftfreq(side)[None], np.fft.fftfreq(side)[:, None]) * wavelength
    response = 2.4 * np.exp(-((frequency - 1) ** 2) * 18)
    state = rng.standard_normal((side, side)) * 0.3
    for _ in range(48):
        spread = np.fft.irfft2(np.fft.rfft2(state) * response, s=(side, side))
        state = np.tanh(spread + bias)
    return np.asarray(state, np.float32)


def blurred(field: Field, radius: float) -> Field:
    side = field.shape[0]
    frequency = np.hypot(np.fft.rfftfreq(side)[None], np.fft.fftfreq(side)[:, None])
    kept = np.exp(-2 * (np.pi * radius * frequency) ** 2)
    return np.asarray(np.fft.irfft2(np.fft.rfft2(field) * kept, s=field.shape), np.float32)


def coral(rng: Rng, side: int) -> Colour:
    field = blurred(turing(rng, side, 26, 0.0), 2.0)
    large = clouds(rng, side, 2.4)
    light = relief(field, 5.0)
    shine = np.clip(relief(field, 5.0, tilt=1.1), 0, 1) ** 30
    reef = "-1:062b3c -0.5:0a5060 0:d14d59 0.5:ff8a6b 1:ffd0a0"
    picture = ramp(reef, field) * (0.45 + 0.75 * light[..., None])
    cool = ramp("-1:051a33 0:6a3d9a 1:f5a6d5", field)
    picture = blend(picture, cool * (0.45 + 0.75 * light[..., None]), smoothstep(0.1, 1.4, large))
    return blend(picture, rgb("ffffff"), shine * 0.5 * (field > 0))


def pebbles(rng: Rng, side: int) -> Colour:
    x, y = grid(side)
    grown = turing(rng, side, 40, -0.42)
    bend_x, bend_y = clouds(rng, 256, 2.6), clouds(rng, 256, 2.6)
    wx, wy = x + 0.02 * sample(bend_x, x, y), y + 0.02 * sample(bend_y, x, y)
    spots = blurred(sample(grown, wx, wy), 3.0)
    tint = sample(clouds(rng, 256, 1.9), x, y)
    stone = "-2:2d5d6b -0.7:4aa08c 0.2:f0cf7a 1:e9824c 2:b03a48"
    light = relief(spots, 8.0)
    raised = smoothstep(-0.35, 0.0, spots)
    grain = clouds(rng, side, 0.9) * 0.02
    stones = ramp(stone, tint) * (0.35 + 0.85 * light[..., None])
    floor = np.broadcast_to(rgb("1b2230"), stones.shape) * (0.6 + 0.5 * light[..., None])
    picture = blend(floor + grain[..., None], stones, raised)
    shine = relief(spots, 8.0, tilt=1.15) ** 40 * raised
    return blend(picture, rgb("fffdf0"), shine * 0.55)


def marble(rng: Rng, side: int) -> Colour:
    x, y = grid(side)
    fields = [clouds(rng, 512, 2.1) for _ in range(5)]
    qx, qy = sample(fields[0], x * 0.6, y * 0.6), sample(fields[1], x * 0.6, y * 0.6)
    rx = sample(fields[2], x * 0.6 + 0.16 * qx, y * 0.6 + 0.16 * qy)
    ry = sample(fields[3], x * 0.6 + 0.16 * qx + 0.3, y * 0.6 + 0.16 * qy + 0.7)
    value = sample(fields[4], x * 0.6 + 0.12 * rx, y * 0.6 + 0.12 * ry)
    ink = "-2.2:0b1d33 -0.9:14506b -0.1:3fa39a 0.5:f3ead2 1.1:e9a15b 2.2:8c2f39"
    picture = ramp(ink, value)
    vein = np.exp(-np.abs(rx - qy * 0.6) * 16)
    picture = blend(picture, rgb("f7d774"), vein * 0.75)
    return np.asarray(picture * (0.72 + 0.42 * relief(value, 9.0)[..., None]), np.float32)


def silk(rng: Rng, side: int) -> Colour:
    x, y = grid(side)
    fold = sample(clouds(rng, 256, 2.9), x * 0.55, y * 0.55)
    other = sample(clouds(rng, 256, 2.9), x * 0.55 + 0.4, y * 0.55)
    wave = np.sin(fold * 4.2 + x * 3) + 0.5 * np.sin(other * 5.5 + y * 7)
    light = relief(wave, 26.0, tilt=0.7)
    dye = "-1.5:2b1055 -0.5:7a1f8f 0.3:e0457b 1:ff9a5a 1.5:ffe29a"
    picture = ramp(dye, 0.8 * other + 0.5 * wave) * (0.25 + 0.95 * light[..., None])
    shine = relief(wave, 26.0, tilt=1.05) ** 18
    return blend(picture, rgb("fff1f5"), shine * 0.45)


# -- spheres ---------------------------------------------------------------------------------

Vectors = NDArray[np.floating[Any]]  # [..., 3]


class Sphere(NamedTuple):
    centre: tuple[float, float, float]
    radius: float
    colour: str
    mirror: float


SUN = np.array([-0.55, 0.75, -0.38], np.float32) / np.float32(1.004)
SPHERES = [
    Sphere((0.0, 1.0, 0.6), 1.0, "e04f5f", 0.22),
    Sphere((-1.75, 0.6, -0.2), 0.6, "f2b134", 0.15),
    Sphere((1.6, 0.72, -0.35), 0.72, "2a9d8f", 0.22),
    Sphere((0.45, 0.35, -1.15), 0.35, "f4f1ea", 0.5),
    Sphere((-0.75, 0.28, -1.3), 0.28, "3a6fd8", 0.25),
    Sphere((2.6, 0.42, 1.3), 0.42, "a35bd0", 0.2),
    Sphere((-2.6, 0.9, 2.6), 0.9, "8fb8de", 0.35),
]


def dot(a: Vectors, b: Vectors) -> Field:
    return np.asarray(np.sum(a * b, axis=-1), np.float32)


def hit(origin: Vectors, ray: Vectors, sphere: Sphere) -> Field:
    """Distance along the rays to the sphere, infinite where they miss."""
    offset = origin - np.array(sphere.centre, np.float32)
    b = dot(offset, ray)
    square = b * b - dot(offset, offset) + np.float32(sphere.radius**2)
    distance = -b - np.sqrt(np.maximum(square, 0))
    return np.where((square > 0) & (distance > 1e-3), distance, np.float32(np.inf))


def lit(point: Vectors, normal: Vectors) -> Field:
    """Sunlight with a soft shadow: some rays to points spread over the sun."""
    total = np.zeros(point.shape[:-1], np.float32)
    angles = np.arange(5) * 2.39996
    for index, angle in enumerate(angles):
        spread = 0.09 * np.sqrt((index + 0.5) / len(angles))
        aim = SUN + np.array([np.cos(angle), 0, np.sin(angle)], np.float32) * np.float32(spread)
        aim = aim / np.linalg.norm(aim)
        free = np.ones(point.shape[:-1], bool)
        for sphere in SPHERES:
            free &= np.isinf(hit(point + normal * np.float32(2e-3), aim, sphere))
        total += free
    return np.asarray(total / len(angles) * np.clip(dot(normal, SUN), 0, 1), np.float32)


def heaven(ray: Vectors) -> Colour:
    above = "-0.1:f6d9c0 0.08:f2dfd0 0.35:a9c9e8 1:3f76b5"
    colour = ramp(above, ray[..., 1])
    return blend(colour, rgb("fff6dd"), np.clip(dot(ray, SUN), 0, 1) ** 60)


def trace(origin: Vectors, ray: Vectors, bounces: int) -> Colour:
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.where(ray[..., 1] < -1e-4, -origin[..., 1] / ray[..., 1], np.float32(np.inf))
    nearest = np.where(down > 1e-3, down, np.float32(np.inf)).astype(np.float32)
    distances = np.stack([nearest, *(hit(origin, ray, sphere) for sphere in SPHERES)])
    which = np.argmin(distances, axis=0)
    nearest = distances.min(axis=0)
    picture = heaven(ray)
    for index in np.unique(which[np.isfinite(nearest)]):
        mask = (which == index) & np.isfinite(nearest)
        point = origin[mask] + ray[mask] * nearest[mask][:, None]
        if index == 0:
            colour, normal, mirror = floor_at(point)
        else:
            sphere = SPHERES[index - 1]
            normal = (point - np.array(sphere.centre, np.float32)) / np.float32(sphere.radius)
            colour = np.broadcast_to(rgb(sphere.colour), point.shape)
            mirror = np.full(len(point), sphere.mirror, np.float32)
        sky_light = (0.32 + 0.18 * normal[:, 1:2]) * rgb("c9dcf2")
        shaded: Colour = colour * (sky_light + lit(point, normal)[:, None] * rgb("fff0d6"))
        facing = -dot(ray[mask], normal)
        reflected = ray[mask] + 2 * facing[:, None] * normal
        if bounces:
            mirror = mirror + (1 - mirror) * (1 - np.clip(facing, 0, 1)) ** 5 * 0.6
            shaded = blend(shaded, trace(point + normal * 2e-3, reflected, bounces - 1), mirror)
        if index:
            shaded = shaded + (np.clip(dot(reflected, SUN), 0, 1) ** 90)[:, None] * 0.8
        else:
            shaded = blend(shaded, heaven(ray[mask]), smoothstep(6, 30, nearest[mask]))
        picture[mask] = shaded
    return picture


def floor_at(point: Vectors) -> tuple[Colour, Vectors, Field]:
    tiles = (np.floor(point[:, 0] * 1.1) + np.floor(point[:, 2] * 1.1)) % 2
    colour = ramp("0:d9d3c7 1:8f9aa6", tiles.astype(np.float32))
    normal = np.broadcast_to(np.array([0, 1, 0], np.float32), point.shape)
    return colour, normal, np.full(len(point), 0.06, np.float32)


def spheres(rng: Rng, side: int) -> Colour:
    x, y = grid(side * 2)
    eye = np.array([0.6, 1.7, -5.6], np.float32)
    forward = np.array([-0.1, -0.14, 1.0], np.float32)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(np.array([0, 1, 0], np.float32), forward)
    right = right / np.linalg.norm(right)
    up = np.cross(forward, right)
    ray = forward + (x - 0.5)[..., None] * 0.95 * right - (y - 0.5)[..., None] * 0.95 * up
    ray = (ray / np.linalg.norm(ray, axis=-1, keepdims=True)).astype(np.float32)
    return shrink(trace(np.broadcast_to(eye, ray.shape), ray, 1), side)


# -- all of them -----------------------------------------------------------------------------

PICTURES: list[tuple[str, int, Callable[[Rng, int], Colour]]] = [
    ("mountains-at-dusk", 512, mountains),
    ("island", 512, island),
    ("dunes", 512, dunes),
    ("nebula", 512, nebula),
    ("julia-ember", 512, julia_ember),
    ("julia-frost", 512, julia_frost),
    ("seahorses", 512, seahorses),
    ("coral", 512, coral),
    ("pebbles", 512, pebbles),
    ("marble", 512, marble),
    ("silk", 512, silk),
    ("spheres", 512, spheres),
    ("lake-by-moonlight", 768, lake),
    ("planet", 768, planet),
]


def draw(index: int) -> Image.Image:
    _, side, scene = PICTURES[index]
    picture = scene(np.random.default_rng(1000 + index), side)
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def draw_into(folder: Path, index: int) -> None:
    draw(index).save(folder / f"{PICTURES[index][0]}.png")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the PNG files go; made if missing")
    parser.add_argument("--only", metavar="NAME", help="draw this one alone")
    args = parser.parse_args()
    names = [name for name, _, _ in PICTURES]
    if args.only is not None and args.only not in names:
        parser.error(f"no picture is called {args.only!r}: there are {', '.join(names)}")
    wanted = [index for index, name in enumerate(names) if args.only in (None, name)]
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(max_workers=min(len(wanted), os.cpu_count() or 1)) as pool:
            for _ in pool.map(draw_into, [args.folder] * len(wanted), wanted):
                pass
    except OSError as error:
        print(f"draw_pictures: {error}", file=sys.stderr)
        return 1
    print(f"drew {len(wanted)} pictures in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
