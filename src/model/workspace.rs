//! Memory that the decoder uses again for every layer, chunk and step, so that a decode step
//! allocates little beyond what candle's matrices do, and a chunk faults no pages in anew.

use std::cell::Cell;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor};

use super::attention;
use super::weights::Product;

/// Everything between the weights and the caches, for one pass at a time.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Residual stream: `(n, hidden)`.
    pub residual: Vec<f32>,
    /// Queries, rotated and scaled: `(n, n_heads, head_dim)`.
    pub q: Vec<f32>,
    /// What goes into the matrices behind a norm.
    pub normed: Input,
    /// What attention gives.
    pub attended: Input,
    /// What the activation gives.
    pub activated: Input,
    /// What goes into the output matrix.
    pub last: Input,
    /// What comes out of a matrix.
    pub product: Product,
    /// Of attention's own.
    pub attention: attention::Scratch,
}

/// The input `(n, width)` of a matrix: a tensor that is written in place over and over.
#[derive(Debug, Default)]
pub struct Input(Option<Tensor>);

impl Input {
    /// Has `write` fill the rows; what they held before is left over, or zeros.
    pub fn write(
        &mut self,
        n: usize,
        width: usize,
        write: impl FnOnce(&mut [f32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<&Tensor> {
        let fits = |tensor: &Tensor| tensor.dims() == [n, width];
        let tensor = match self.0.take().filter(fits) {
            Some(tensor) => tensor,
            None => Tensor::from_vec(vec![0f32; n * width], (n, width), &Device::Cpu)?,
        };
        let written = Cell::new(Ok(()));
        tensor.inplace_op1(&Write {
            write: Cell::new(Some(write)),
            written: &written,
        })?;
        written.into_inner()?;
        Ok(self.0.insert(tensor))
    }
}

/// Candle gives a tensor's elements out for writing to operations alone.
struct Write<'a, F> {
    write: Cell<Option<F>>,
    written: &'a Cell<anyhow::Result<()>>,
}

impl<F: FnOnce(&mut [f32]) -> anyhow::Result<()>> InplaceOp1 for Write<'_, F> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(elements) = storage else {
            candle_core::bail!("expected f32 elements, got {:?}", storage.dtype())
        };
        if let Some(write) = self.write.take() {
            self.written.set(write(elements));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_keeps_its_memory_while_its_size_stays() {
        let mut input = Input::default();
        let mut addresses = Vec::new();
        for value in [1.0, 2.0] {
            let tensor = input.write(2, 3, |out| {
                addresses.push(out.as_ptr());
                out[..5].fill(value);
                Ok(())
            });
            let rows = tensor.unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(rows, [[value; 3], [value, value, 0.0]]);
        }
        assert_eq!(addresses[0], addresses[1]);
        let one = input.write(1, 3, |_| Ok(())).unwrap();
        assert_eq!(one.to_vec2::<f32>().unwrap(), [[0.0; 3]]);
    }

    #[test]
    fn what_goes_wrong_while_writing_is_told() {
        let mut input = Input::default();
        let error = input.write(1, 1, |_| anyhow::bail!("no"));
        assert_eq!(error.unwrap_err().to_string(), "no");
    }
}
