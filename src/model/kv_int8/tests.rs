use super::*;
use proptest::prelude::*;

fn layout(dtype: KvDtype, head_dim: usize) -> KvLayout {
    KvLayout {
        n_layers: 2,
        n_kv_heads: 3,
        head_dim,
        dtype,
    }
}

/// Values as a cache of that type holds them.
fn bytes_of(values: &[f32], dtype: KvDtype) -> Vec<u8> {
    let bytes = values.iter().map(|value| match dtype {
        KvDtype::F32 => value.to_le_bytes().to_vec(),
        KvDtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        KvDtype::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
    });
    bytes.flatten().collect()
}

fn values_of(bytes: &[u8], dtype: KvDtype) -> Vec<f32> {
    let size = dtype.bytes();
    let value = |b: &[u8]| match dtype {
        KvDtype::F32 => f32::from_le_bytes(b.try_into().unwrap()),
        KvDtype::F16 => f16::from_le_bytes(b.try_into().unwrap()).to_f32(),
        KvDtype::Bf16 => bf16::from_le_bytes(b.try_into().unwrap()).to_f32(),
    };
    bytes.chunks(size).map(value).collect()
}

/// Rows there and back: the quantised bytes and the values.
fn there_and_back(layout: KvLayout, rows: &[u8]) -> (Vec<u8>, Vec<f32>) {
    // What an earlier piece left must not matter.
    let mut quantised = vec![0xaa; 17];
    quantise(layout, rows, &mut quantised);
    let mut back = vec![0x55; rows.len()];
    dequantise(layout, &quantised, &mut back);
    (quantised, values_of(&back, layout.dtype))
}

/// The scales of quantised rows, one a vector.
fn scales(layout: KvLayout, quantised: &[u8]) -> Vec<f32> {
    let heads = quantised.chunks(2 * (SCALE_BYTES + layout.head_dim));
    heads
        .flat_map(|head| [0, 4].map(|at| f32::from_le_bytes(head[at..at + 4].try_into().unwrap())))
        .collect()
}

/// Demands that no value is further off than half a step and what its type rounds.
fn is_near(layout: KvLayout, before: &[f32], quantised: &[u8], after: &[f32]) {
    let (vectors, back) = (
        before.chunks(layout.head_dim),
        after.chunks(layout.head_dim),
    );
    for ((vector, back), scale) in vectors.zip(back).zip(scales(layout, quantised)) {
        let largest = vector.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (value, back) in vector.iter().zip(back) {
            // Rounding to the nearest, of the reciprocal scale, and to the cache's type.
            let rounding = match layout.dtype {
                KvDtype::F32 => 1e-4 * scale,
                KvDtype::F16 => 1e-4 * scale + largest * f16::EPSILON.to_f32() / 2.0 + 3.1e-8,
                KvDtype::Bf16 => 1e-4 * scale + largest * bf16::EPSILON.to_f32() / 2.0,
            };
            let off = (value - back).abs();
            assert!(
                off <= scale / 2.0 + rounding,
                "{value} became {back} in steps of {scale}"
            );
        }
    }
}

proptest! {
    #[test]
    fn no_value_is_off_by_more_than_half_a_step(
        head_dim in 1usize..70,
        tokens in 1usize..4,
        dtype in prop::sample::select(vec![KvDtype::F32, KvDtype::F16, KvDtype::Bf16]),
        magnitude in -6i32..5,
        seed: u64,
    ) {
        let layout = layout(dtype, head_dim);
        let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
        let values: Vec<f32> = (0..tokens * layout.row_elements())
            .map(|_| rand::Rng::random_range(&mut random, -1f32..1.0) * 10f32.powi(magnitude))
            .collect();
        let rows = bytes_of(&values, dtype);
        let values = values_of(&rows, dtype);
        let (quantised, back) = there_and_back(layout, &rows);
        prop_assert_eq!(quantised.len(), tokens * WireRows::Int8.row_bytes(layout));
        is_near(layout, &values, &quantised, &back);
    }

    #[test]
    fn any_bytes_are_taken_in_both_directions(
        rows in prop::collection::vec(any::<u8>(), 3 * 2 * 8 * 4..=3 * 2 * 8 * 4),
        quantised in prop::collection::vec(any::<u8>(), 3 * 2 * (4 + 8)..=3 * 2 * (4 + 8)),
    ) {
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let layout = layout(dtype, 8);
            let rows = &rows[..layout.row_bytes()];
            let (_, back) = there_and_back(layout, rows);
            prop_assert!(back.iter().all(|v| v.is_finite()), "{back:?}");
            let mut place = vec![0; layout.row_bytes()];
            dequantise(layout, &quantised, &mut place);
        }
    }
}

#[test]
fn the_form_is_scales_then_bytes_head_by_head() {
    let layout = KvLayout {
        n_kv_heads: 1,
        ..layout(KvDtype::F32, 4)
    };
    let values = [127.0, -127.0, 63.4, 0.0, 0.5, -0.25, 0.125, 0.0];
    let (quantised, back) = there_and_back(layout, &bytes_of(&values, layout.dtype));
    assert_eq!(quantised.len(), 16);
    assert_eq!(quantised[..4], 1f32.to_le_bytes());
    assert_eq!(quantised[4..8], (0.5f32 / 127.0).to_le_bytes());
    let bytes: Vec<i8> = quantised[8..].iter().map(|b| *b as i8).collect();
    assert_eq!(bytes, [127, -127, 63, 0, 127, -64, 32, 0]);
    assert_eq!(back[..4], [127.0, -127.0, 63.0, 0.0]);
    assert!((back[4] - 0.5).abs() < 1e-7);
}

#[test]
fn zeros_stay_zeros_beside_a_vector_that_is_none() {
    for dtype in [KvDtype::F32, KvDtype::F16] {
        let layout = layout(dtype, 8);
        let mut values = vec![0.0; layout.row_elements()];
        values[8..16].fill(-3.0);
        let (quantised, back) = there_and_back(layout, &bytes_of(&values, dtype));
        let scales = scales(layout, &quantised);
        assert_eq!(scales[0], 0.0);
        assert!(scales[1] > 0.0 && scales[2..].iter().all(|s| *s == 0.0));
        assert_eq!(back[..8], [0.0; 8]);
        assert!(back[8..16].iter().all(|v| (v + 3.0).abs() < 0.02));
    }
}

#[test]
fn what_is_not_finite_becomes_what_it_is_said_to() {
    for dtype in [KvDtype::F32, KvDtype::F16] {
        let layout = layout(dtype, 8);
        let mut values = vec![1.0; layout.row_elements()];
        values[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -2.0]);
        values[8..16].fill(f32::INFINITY);
        values[16..24].fill(f32::NAN);
        let (quantised, back) = there_and_back(layout, &bytes_of(&values, dtype));
        assert_eq!(back[0], 0.0);
        for (value, want) in back[1..5].iter().zip([2.0, -2.0, -2.0, 1.0]) {
            assert!((value - want).abs() < 0.01, "{value} {want}");
        }
        // Without a finite value there is no largest one.
        assert_eq!(back[8..24], [0.0; 16]);
        assert_eq!(scales(layout, &quantised)[1..3], [0.0; 2]);
    }
}

#[test]
fn the_ends_of_the_range_come_back_finite() {
    for largest in [f32::MAX, f32::MAX.next_down(), 3.0e38, 1e-30, 2e-36] {
        let layout = layout(KvDtype::F32, 4);
        let mut values = vec![largest; layout.row_elements()];
        values[1] = -largest / 3.0;
        let (quantised, back) = there_and_back(layout, &bytes_of(&values, layout.dtype));
        assert!(back.iter().all(|v| v.is_finite()), "{back:?}");
        is_near(layout, &values, &quantised, &back);
    }
    // Steps would be too small to divide by.
    for tiny in [f32::MIN_POSITIVE, 1e-40, 1.2e-36] {
        let layout = layout(KvDtype::F32, 4);
        let values = vec![tiny; layout.row_elements()];
        let (_, back) = there_and_back(layout, &bytes_of(&values, layout.dtype));
        assert!(back.iter().all(|v| *v == 0.0), "{back:?}");
    }
    let layout = layout(KvDtype::F16, 4);
    let values = vec![65_504.0; layout.row_elements()];
    let (_, back) = there_and_back(layout, &bytes_of(&values, layout.dtype));
    assert!(back.iter().all(|v| *v == 65_504.0), "{back:?}");
}

#[test]
fn a_carried_cache_has_the_digest_that_was_foretold() {
    let layout = layout(KvDtype::F16, 16);
    let tokens = ROWS_AT_ONCE + 44;
    let cache = KvCache::new(layout, tokens + 5);
    for layer in 0..layout.n_layers {
        let mut claim = cache.claim(layer, 0, tokens).unwrap();
        let values: Vec<f32> = (0..tokens * layout.row_elements())
            .map(|i| ((i * (layer + 3)) as f32 * 0.37).sin() * 5.0)
            .collect();
        claim.copy_from_slice(&bytes_of(&values, layout.dtype));
        claim.land();
    }
    let carried = |rows: WireRows| {
        let copy = KvCache::new(layout, tokens);
        rows.carry(&cache, tokens, &copy).unwrap();
        assert_eq!(
            copy.digest(tokens).unwrap(),
            rows.digest(&cache, tokens).unwrap()
        );
        copy.digest(tokens).unwrap()
    };
    let exact = cache.digest(tokens).unwrap();
    assert_eq!(carried(WireRows::Same), exact);
    assert_ne!(carried(WireRows::Int8), exact);
    assert!(WireRows::Int8.digest(&cache, tokens + 1).is_err());
}
