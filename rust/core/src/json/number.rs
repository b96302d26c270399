//! Numbers as Python's `repr` writes them: floats with the shortest digits that read back the same, and always a float again.

/// Appends an integer.
pub fn push_int(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0; 20];
    let mut left = value.unsigned_abs();
    let mut count = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        count += 1;
        if left == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(digits.get(digits.len() - count..).unwrap_or_default());
}

/// Appends a finite float.
pub fn push_float(out: &mut Vec<u8>, value: f64) {
    let mut buffer = ryu::Buffer::new();
    let text = buffer.format_finite(value);
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        out.extend_from_slice(text.as_bytes()); // without an exponent here as there
    } else {
        push_pointed(out, text);
    }
}

/// Puts the point, or an exponent, where `repr` puts it.
fn push_pointed(out: &mut Vec<u8>, text: &str) {
    let (text, negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    if negative {
        out.push(b'-');
    }
    // ryu gives the shortest digits; where the point goes is ours to decide.
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let mut point = whole.len() as i32 + exponent; // the value is 0.DIGITS * 10^point
    let zeros = digits.iter().take_while(|d| **d == b'0').count();
    if zeros == digits.len() {
        out.extend_from_slice(b"0.0");
        return;
    }
    digits.drain(..zeros);
    point -= zeros as i32;
    while digits.last() == Some(&b'0') {
        digits.pop();
    }
    let count = digits.len() as i32;
    if -4 < point && point <= 16 {
        if point <= 0 {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', (-point) as usize));
            out.extend_from_slice(&digits);
        } else if point >= count {
            out.extend_from_slice(&digits);
            out.extend(std::iter::repeat_n(b'0', (point - count) as usize));
            out.extend_from_slice(b".0");
        } else {
            let (whole, fraction) = digits.split_at(point as usize);
            out.extend_from_slice(whole);
            out.push(b'.');
            out.extend_from_slice(fraction);
        }
    } else {
        let (first, rest) = digits.split_at(1);
        out.extend_from_slice(first);
        if !rest.is_empty() {
            out.push(b'.');
            out.extend_from_slice(rest);
        }
        let exponent = point - 1;
        let sign = if exponent < 0 { '-' } else { '+' };
        out.extend_from_slice(format!("e{sign}{:02}", exponent.abs()).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::{push_float, push_int, push_pointed};
    use proptest::prelude::*;

    fn text(value: f64) -> String {
        let mut out = Vec::new();
        push_float(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn as_python_repr() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (100.0, "100.0"),
            (123456789.125, "123456789.125"),
            (1e15, "1000000000000000.0"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.5e16, "1.5e+16"),
            (1e22, "1e+22"),
            (0.0001, "0.0001"),
            (0.00012, "0.00012"),
            (0.00001, "1e-05"),
            (1.2345e-7, "1.2345e-07"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (-2.5, "-2.5"),
        ] {
            assert_eq!(text(value), expected);
        }
    }

    proptest! {
        #[test]
        fn reads_back_the_same(value in proptest::num::f64::ANY) {
            prop_assume!(value.is_finite());
            let text = text(value);
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
            prop_assert!(text.contains(['.', 'e']));
        }

        #[test]
        fn both_ways_to_write_a_float_agree(value in prop_oneof![-1e18f64..1e18, -1e-3f64..1e-3, -2f64..2.0]) {
            let mut pointed = Vec::new();
            push_pointed(&mut pointed, ryu::Buffer::new().format_finite(value));
            prop_assert_eq!(text(value).into_bytes(), pointed);
        }

        #[test]
        fn integers_are_decimal(value in prop_oneof![any::<i64>(), -20i64..20, Just(i64::MIN), Just(i64::MAX)]) {
            let mut out = Vec::new();
            push_int(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
