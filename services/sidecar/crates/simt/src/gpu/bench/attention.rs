//! Attention of one layer.

use super::super::size::BLOCK;
use super::{Bench, Taken, Work};
use kvasir_cuda::{Attend, DeviceError, DeviceRows, Division, StepRows, attend, partial_bytes};
use kvasir_kernels::Span;

impl Bench<'_> {
    /// Of decode rows, each of which sees the context.
    pub(super) fn decode(&self, batch: usize, shared: usize) -> Result<Taken, DeviceError> {
        let (config, context) = (&self.size.config, self.size.context);
        let (of_shared, blocks) = (shared / BLOCK, context / BLOCK);
        let tables: Vec<Vec<u32>> = (0..batch)
            .map(|i| {
                let own = of_shared + i * (blocks - of_shared);
                (0..of_shared)
                    .chain(own..own + blocks - of_shared)
                    .map(|block| block as u32)
                    .collect()
            })
            .collect();
        let spans: Vec<Span<'_>> = tables
            .iter()
            .map(|blocks| Span {
                start_position: context - 1,
                token_count: 1,
                blocks,
            })
            .collect();
        let tokens = shared + batch * (context - shared);
        let work = Work {
            bytes: (tokens * config.kv_head_count * config.head_size * 4) as f64,
            operations: 4.0 * (batch * context * config.head_count * config.head_size) as f64,
        };
        let (name, shape) = match shared {
            0 => ("attention, decode", format!("{batch} of {context}")),
            shared => (
                "attention, decode, shared prefix",
                format!("{batch} of {context}, {shared} shared"),
            ),
        };
        let milliseconds = self.attention(name, &shape, work, &spans, tokens)?;
        Ok(Taken {
            milliseconds,
            bytes: work.bytes,
        })
    }

    pub(super) fn prompt(&self, length: usize) -> Result<(), DeviceError> {
        let config = &self.size.config;
        let blocks: Vec<u32> = (0..length.div_ceil(BLOCK) as u32).collect();
        let span = Span {
            start_position: 0,
            token_count: length,
            blocks: &blocks,
        };
        let heads = config.kv_head_count + config.head_count;
        let work = Work {
            bytes: (length * heads * config.head_size * 4) as f64,
            // Half of the square is seen.
            operations: 2.0 * (length * length * config.head_count * config.head_size) as f64,
        };
        self.attention("attention, prompt", &format!("{length}"), work, &[span], length)?;
        Ok(())
    }

    fn attention(
        &self,
        name: &str,
        shape: &str,
        work: Work,
        spans: &[Span<'_>],
        tokens: usize,
    ) -> Result<f64, DeviceError> {
        let (config, pool_shape, division) = (&self.size.config, self.size.pool(1), Division::FAST);
        let group = config.head_count / config.kv_head_count;
        let plan = StepRows::new(spans, BLOCK, group, division);
        let memory = self.device.allocate(4 * DeviceRows::words(&plan, &[]))?;
        let rows = DeviceRows::upload(self.device, &memory, &plan, &[])?;
        let pool = self.filled(tokens.div_ceil(BLOCK) * pool_shape.block_bytes())?;
        let bytes = plan.positions.len() * config.head_count * config.head_size * 2;
        let (query, out) = (self.filled(bytes)?, self.device.allocate(bytes)?);
        let [sums, stats] = partial_bytes(&plan, config.head_count, config.head_size);
        let partials = [self.device.allocate(sums)?, self.device.allocate(stats)?];
        self.line(name, shape, work, || {
            let op = Attend {
                query: &query,
                pool: &pool,
                out: &out,
                partials: Some([&partials[0], &partials[1]]),
                shape: pool_shape,
                layer: 0,
                head_count: config.head_count,
                partition: division.partition,
            };
            attend(self.device, &plan, &rows, &op)
        })
    }
}
