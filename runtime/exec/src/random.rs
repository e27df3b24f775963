//! Counter-based random numbers: number i of a stream depends on the seed, the stream and i alone, not on what was drawn before.
//! # Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011 (Philox4x32-10).

/// Four words for a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(c0) * 0xD251_1F53;
        let p1 = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// A stream of numbers, by name.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    id: u64,
}

impl Stream {
    /// The stream called `name` of a seed.
    pub fn new(seed: u64, name: &str) -> Stream {
        Stream { key: [seed as u32, (seed >> 32) as u32], id: library::file::checksum(name.as_bytes()) }
    }
    fn words(&self, i: u64) -> [u32; 4] {
        philox([i as u32, (i >> 32) as u32, self.id as u32, (self.id >> 32) as u32], self.key)
    }
    /// Number i, uniform in [0, 1).
    pub fn uniform(&self, i: u64) -> f64 {
        let [a, b, _, _] = self.words(i);
        ((u64::from(a) << 21) ^ u64::from(b >> 11)) as f64 / (1u64 << 53) as f64
    }
    /// Number i, standard normal. # Source: Box and Muller, 1958.
    pub fn normal(&self, i: u64) -> f64 {
        let [a, b, c, d] = self.words(i);
        let unit = |hi: u32, lo: u32| ((u64::from(hi) << 21) ^ u64::from(lo >> 11)) as f64 / (1u64 << 53) as f64;
        let (u, v) = (1.0 - unit(a, b), unit(c, d));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
    /// Number i, uniform in 0..n.
    pub fn below(&self, i: u64, n: u64) -> u64 {
        let [a, b, _, _] = self.words(i);
        ((u128::from(u64::from(a) << 32 | u64::from(b)) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_its_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn normals_have_mean_0_and_deviation_1() {
        let s = Stream::new(3, "x");
        let v: Vec<f64> = (0..20_000).map(|i| s.normal(i)).collect();
        let mean = v.iter().sum::<f64>() / 20_000.0;
        let var = v.iter().map(|x| x * x).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.04, "{mean} {var}");
        assert!((0..1000).all(|i| s.below(i, 7) < 7));
    }
}
