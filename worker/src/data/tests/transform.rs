//! Resizing and normalising, against numbers computed by PyTorch.

use crate::data::Resizer;
use crate::data::dataset::ImageRef;
use anybit_shared::spec::{DataFormat, DataSpec};

fn spec(image_size: u32, mean: f64, std: f64) -> DataSpec {
    DataSpec { format: DataFormat::Idx, path: String::new(), image_size, mean, std }
}

/// A deterministic image with steep edges: value (97 y + 31 x + 57 c + 13 x y) mod 256.
fn pixels(height: usize, width: usize, channels: usize) -> Vec<u8> {
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            pixels.extend((0..channels).map(|c| ((97 * y + 31 * x + 57 * c + 13 * x * y) % 256) as u8));
        }
    }
    pixels
}

fn apply(resizer: &mut Resizer, height: usize, width: usize, channels: usize, pixels: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; resizer.values()];
    resizer.apply(ImageRef { height, width, channels, pixels }, &mut out);
    out
}

type Case = (usize, usize, usize, u32, &'static [(usize, f64)]);

/// Height, width, channels, target size, and values at places of the flattened size x size x 3
/// output: PyTorch 2.11, float32, `interpolate(image / 255, mode="bilinear", align_corners=False)`,
/// with `antialias=True` where an axis shrinks.
#[rustfmt::skip]
const PYTORCH: &[Case] = &[
    (8, 8, 1, 40, &[(0, 0.0), (91, 0.68078429), (376, 0.15513727), (467, 0.74494112), (752, 0.56407845), (843, 0.38039216), (1128, 0.67121571), (1504, 0.60627455), (1881, 0.65333331), (2257, 0.71686274), (2633, 0.64078426), (3009, 0.69662744), (3386, 0.3940393), (3762, 0.31639218), (4138, 0.54384321), (4514, 0.3505882), (4799, 0.99215692)]),
    (28, 28, 1, 40, &[(0, 0.0), (91, 0.5268628), (376, 0.51075494), (467, 0.19950011), (752, 0.72569609), (843, 0.58887255), (1128, 0.92293131), (1504, 0.59838241), (1881, 0.43612772), (2257, 0.44299027), (2633, 0.69730389), (3009, 0.58048058), (3386, 0.51463765), (3762, 0.69704902), (4138, 0.54849988), (4514, 0.49681395), (4799, 0.52156866)]),
    (32, 32, 3, 40, &[(0, 0.0), (91, 0.11725486), (376, 0.72474515), (467, 0.38545099), (752, 0.44003919), (843, 0.51627451), (1128, 0.7098431), (1504, 0.5531373), (1881, 0.70764732), (2257, 0.44803935), (2633, 0.46450973), (3009, 0.84631348), (3386, 0.40364748), (3762, 0.72866642), (4138, 0.80286258), (4514, 0.40019614), (4799, 0.74901962)]),
    (5, 3, 3, 7, &[(0, 0.0), (17, 0.67282915), (18, 0.24313726), (36, 0.49723893), (54, 0.63345337), (72, 0.98431373), (73, 0.20392157), (91, 0.52356946), (109, 0.50468189), (127, 0.74117649), (128, 0.96470588), (146, 0.61176473)]),
    (4, 4, 1, 4, &[(0, 0.0), (5, 0.12156863), (10, 0.36470589), (16, 0.5529412), (21, 0.89803922), (26, 0.76078433), (32, 0.20392157), (37, 0.13725491), (42, 0.68627453), (43, 0.68627453), (47, 0.96078432)]),
    (1, 1, 1, 3, &[(0, 0.0), (1, 0.0), (9, 0.0), (10, 0.0), (18, 0.0), (19, 0.0), (26, 0.0)]),
    (1, 7, 1, 5, &[(0, 0.040522873), (1, 0.040522873), (3, 0.18910673), (12, 0.68888891), (14, 0.68888891), (16, 0.040522873), (25, 0.54030502), (27, 0.68888891), (28, 0.68888891), (38, 0.36470586), (39, 0.54030502), (41, 0.54030502), (51, 0.36470586), (52, 0.36470586), (63, 0.18910673), (65, 0.18910673), (74, 0.68888891)]),
    (3, 200, 1, 64, &[(0, 0.16442376), (91, 0.48016593), (952, 0.25628456), (1043, 0.34788841), (1904, 0.34924585), (1995, 0.59434396), (2856, 0.38259318), (3808, 0.41541234), (4761, 0.45992473), (5713, 0.44291094), (6665, 0.63038647), (7617, 0.54404163), (8570, 0.42949554), (9522, 0.44706652), (10474, 0.42063853), (11426, 0.37924322), (12287, 0.52991956)]),
    (16, 12, 1, 5, &[(0, 0.46751827), (1, 0.46751827), (3, 0.51842934), (12, 0.43794012), (14, 0.43794012), (16, 0.5210951), (25, 0.48068154), (27, 0.49662903), (28, 0.49662903), (38, 0.50366622), (39, 0.52577758), (41, 0.52577758), (51, 0.57000327), (52, 0.57000327), (63, 0.48909464), (65, 0.48909464), (74, 0.61110443)]),
    (9, 3, 3, 6, &[(0, 0.14264707), (13, 0.61237746), (14, 0.55355394), (15, 0.42401963), (29, 0.60773426), (30, 0.51775599), (45, 0.57908493), (60, 0.5575164), (61, 0.39063182), (75, 0.46873638), (76, 0.60860568), (91, 0.48872554), (106, 0.50539219), (107, 0.352451)]),
    (61, 47, 3, 20, &[(0, 0.458496), (91, 0.49902439), (99, 0.55886483), (190, 0.47090602), (198, 0.48141792), (289, 0.52943605), (297, 0.47670582), (397, 0.52320951), (496, 0.55922598), (595, 0.45969099), (695, 0.51092017), (794, 0.39282572), (893, 0.48877215), (993, 0.43621284), (1092, 0.72053039), (1191, 0.43296021), (1199, 0.50401473)]),
];

#[test]
fn values_equal_pytorchs() {
    for &(height, width, channels, size, expected) in PYTORCH {
        let mut resizer = Resizer::new(&spec(size, 0.0, 1.0));
        let out = apply(&mut resizer, height, width, channels, &pixels(height, width, channels));
        for &(place, value) in expected {
            let error = (f64::from(out[place]) - value).abs();
            assert!(
                error <= 1e-6,
                "{height}x{width}x{channels} to {size}, place {place}: {} is {error} from {value}",
                out[place]
            );
        }
    }
}

#[test]
fn the_same_size_changes_no_pixel() {
    let image = pixels(40, 40, 3);
    let out = apply(&mut Resizer::new(&spec(40, 0.0, 1.0 / 255.0)), 40, 40, 3, &image);
    assert!(out.iter().zip(&image).all(|(&value, &pixel)| value == f32::from(pixel)));
}

#[test]
fn pixels_are_normalised_after_resizing() {
    let out = apply(&mut Resizer::new(&spec(2, 0.5, 0.5)), 1, 1, 3, &[0, 255, 51]);
    for pixel in out.chunks_exact(3) {
        for (value, expected) in pixel.iter().zip([-1.0, 1.0, -0.6]) {
            assert!((value - expected).abs() < 1e-6, "{pixel:?}");
        }
    }
    let out = apply(&mut Resizer::new(&spec(1, 0.25, 0.1)), 1, 1, 1, &[255]);
    assert!(out.iter().all(|value| (value - 7.5).abs() < 1e-6), "{out:?}");
}

#[test]
fn grey_is_repeated_in_every_channel() {
    let out = apply(&mut Resizer::new(&spec(9, 0.5, 0.5)), 5, 4, 1, &pixels(5, 4, 1));
    assert!(out.chunks_exact(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]));
    assert!(out.chunks_exact(3).any(|pixel| pixel[0] != out[0]));
}

#[test]
fn one_resizer_serves_images_of_changing_size() {
    let mut shared = Resizer::new(&spec(12, 0.5, 0.5));
    for (height, width, channels) in [(8, 8, 1), (30, 5, 3), (8, 8, 1), (3, 64, 3), (12, 12, 1)] {
        let image = pixels(height, width, channels);
        let fresh = apply(&mut Resizer::new(&spec(12, 0.5, 0.5)), height, width, channels, &image);
        assert_eq!(apply(&mut shared, height, width, channels, &image), fresh);
    }
}

#[test]
fn a_flat_image_stays_flat_at_any_size() {
    for source in 1..40 {
        for size in 1..40 {
            let mut resizer = Resizer::new(&spec(size, 0.0, 1.0));
            let out = apply(&mut resizer, source, source, 1, &vec![200; source * source]);
            let worst = out.iter().map(|v| (v - 200.0 / 255.0).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "{source} to {size}: {worst}");
        }
    }
}
