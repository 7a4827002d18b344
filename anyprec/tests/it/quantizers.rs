//! The quantizers against their formulas, written here with plain libtorch operations.

use anybit_anyprec::quant::{Rounding, quantize_activation, quantize_weight};
use anybit_shared::ids::BitWidth;
use tch::{Device, Kind, Tensor};

fn widths() -> Vec<BitWidth> {
    [32, 8, 7, 6, 5, 4, 3, 2, 1].map(|b| BitWidth::new(b).expect("width")).to_vec()
}

/// round(x) forward, identity backward, by the detach trick that the product does not use.
fn straight_through_round(x: &Tensor) -> Tensor {
    x + (x.round() - x).detach()
}

fn reference_weight(w: &Tensor, width: BitWidth) -> Tensor {
    let scale = w.abs().mean(None::<Kind>).detach();
    let t = w.tanh();
    let largest = t.abs().max();
    match width.levels() {
        None => t / largest * scale,
        Some(n) => {
            let n = f64::from(n);
            let unit: Tensor = t / 2.0 / largest + 0.5;
            (straight_through_round(&(unit * n)) / n * 2.0 - 1.0) * scale
        }
    }
}

fn leaf(shape: &[i64], kind: Kind) -> Tensor {
    tch::manual_seed(5);
    Tensor::randn(shape, (kind, Device::Cpu)).set_requires_grad(true)
}

fn off(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn weights_and_their_joint_gradient_follow_the_formula_at_every_width() {
    let (ours, theirs) = (leaf(&[8, 4, 3, 3], Kind::Double), leaf(&[8, 4, 3, 3], Kind::Double));
    let outputs = quantize_weight(&ours, &widths()).expect("quantizes");
    let mut loss = Tensor::from(0.0);
    let mut reference_loss = Tensor::from(0.0);
    for (i, (width, output)) in widths().into_iter().zip(&outputs).enumerate() {
        let expected = reference_weight(&theirs, width);
        assert!(off(output, &expected) < 1e-15, "{width} bits");
        // A different gradient for each width.
        let probe = Tensor::randn([8, 4, 3, 3], (Kind::Double, Device::Cpu)) * (i as f64 + 1.0);
        loss += (output * &probe).sum(None::<Kind>);
        reference_loss += (expected * probe).sum(None::<Kind>);
    }
    loss.backward();
    reference_loss.backward();
    let largest = theirs.grad().abs().max().double_value(&[]);
    assert!(off(&ours.grad(), &theirs.grad()) < 1e-13 * largest);
}

#[test]
fn a_weight_takes_at_most_two_to_the_bits_values() {
    let w = leaf(&[64, 16, 3, 3], Kind::Float);
    for (width, q) in widths().into_iter().zip(quantize_weight(&w, &widths()).expect("quantizes")) {
        if let Some(levels) = width.levels() {
            let (values, _, _) = q.detach().view([-1]).unique_dim(0, true, false, false);
            assert!(values.size()[0] <= i64::from(levels) + 1, "{width} bits: {} values", values.size()[0]);
        }
    }
}

#[test]
fn ties_of_the_largest_weight_share_its_gradient() {
    let tied = || Tensor::from_slice(&[0.5, -0.5, 0.1, 0.5f64]).set_requires_grad(true);
    let (ours, theirs) = (tied(), tied());
    let probe = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0f64]);
    let full = [BitWidth::FULL];
    (quantize_weight(&ours, &full).expect("quantizes").swap_remove(0) * &probe).sum(None::<Kind>).backward();
    (reference_weight(&theirs, BitWidth::FULL) * &probe).sum(None::<Kind>).backward();
    assert!(off(&ours.grad(), &theirs.grad()) < 1e-15);
}

fn reference_activation(x: &Tensor, width: BitWidth, rounding: Rounding) -> Tensor {
    match (width.levels(), rounding) {
        (None, _) => x.relu(),
        (Some(n), Rounding::Codes) => {
            straight_through_round(&(x.clamp(0.0, 1.0) * f64::from(n))) / f64::from(n)
        }
        (Some(_), Rounding::None) => x.clamp(0.0, 1.0),
    }
}

#[test]
fn activations_and_gradients_follow_the_formula_bit_for_bit() {
    for kind in [Kind::Float, Kind::Double] {
        for (width, rounding) in
            widths().into_iter().flat_map(|w| [(w, Rounding::Codes), (w, Rounding::None)])
        {
            // Ends of the clamp, ties of the rounding, both signs of zero, and enough entries for
            // every path of a vectorized loop and its tail.
            let edges = [-0.0, 0.0, 1.0, 0.5, 0.25, 1.5 / 255.0, -1e-30, 1.0 + 1e-6, 2.0, -3.0];
            let x = Tensor::cat(
                &[
                    Tensor::from_slice(&edges),
                    Tensor::rand([70_001], (Kind::Double, Device::Cpu)) * 2.0 - 0.5,
                ],
                0,
            );
            let make = || x.to_kind(kind).detach().copy().set_requires_grad(true);
            let (ours, theirs) = (make(), make());
            let y = quantize_activation(&ours, width, rounding).expect("quantizes");
            let expected = reference_activation(&theirs, width, rounding);
            // The detach trick x + (round(x) - x) is itself off by a rounding.
            let exact = match (width.levels(), rounding) {
                (Some(n), Rounding::Codes) => (theirs.clamp(0.0, 1.0) * f64::from(n)).round() / f64::from(n),
                _ => expected.shallow_clone(),
            };
            assert!(y == exact, "{width} bits, {kind:?}: off by {:e}", off(&y, &exact));
            let probe = x.to_kind(kind) + 3.0;
            (y * &probe).sum(None::<Kind>).backward();
            (expected * &probe).sum(None::<Kind>).backward();
            // The reference multiplies by n and divides by it again.
            assert!(off(&ours.grad(), &theirs.grad()) < 1e-6, "{width} bits, {kind:?}: gradients differ");
            let passes = |grad: Tensor| grad.not_equal(0.0);
            assert!(passes(ours.grad()) == passes(theirs.grad()), "{width} bits, {kind:?}: another clamp");
        }
    }
}

#[test]
fn a_nan_stays_one_at_every_width() {
    let x = Tensor::from_slice(&[f32::NAN, 0.3]);
    for width in widths() {
        let y = quantize_activation(&x, width, Rounding::Codes).expect("quantizes");
        assert!(y.double_value(&[0]).is_nan(), "{width} bits");
        assert!(y.double_value(&[1]).is_finite(), "{width} bits");
    }
}

#[test]
fn memory_order_is_kept_and_does_not_change_the_numbers() {
    let x = Tensor::rand([2, 5, 7, 6], (Kind::Float, Device::Cpu)) * 2.0 - 0.5;
    let last = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let width = BitWidth::new(2).expect("width");
    let (a, b) = (
        quantize_activation(&x.copy().set_requires_grad(true), width, Rounding::Codes).expect("quantizes"),
        quantize_activation(&last, width, Rounding::Codes).expect("quantizes"),
    );
    assert!(a == b);
    assert_eq!(b.stride(), last.stride());
}
