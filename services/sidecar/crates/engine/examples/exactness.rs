//! What multiplying quantised weights with 8-bit activations costs against the same weights dequantised to f32:
//! `cargo run --release --example exactness -- MODEL [token ids, comma separated]`.

use kvasir_engine::{Engine, EngineOptions, KvDtype, LayerWeights, PackedMatrix, WeightType, Weights, random::uniform};
use kvasir_model::{LayerTensor, ModelSource, TensorId, quant::dequantize};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let source = ModelSource::open(Path::new(
        arguments.first().ok_or("name a model directory or GGUF file")?,
    ))?;
    let vocab = source.config().vocab_size;
    let tokens: Vec<u32> = match arguments.get(1) {
        Some(text) => text.split(',').map(str::parse).collect::<Result<_, _>>()?,
        None => (0..64).map(|index| (uniform(1, index) * vocab as f64) as u32).collect(),
    };
    let options = EngineOptions {
        kv_bytes: 256 << 20,
        block_size: 32,
        kv_dtype: KvDtype::F32,
        threads: 2,
        step_token_max: 512,
    };
    let direct = Engine::load(&source, options, &mut |_, _| {})?.logits(&tokens, 512)?;
    let revision = source.revision().to_owned();
    let mut engine = Engine::from_weights(source.config().clone(), revision, dequantised(&source)?, options)?;
    let exact = engine.logits(&tokens, 512)?;

    let (mut divergence, mut agree, mut largest) = (0.0, 0, 0.0_f32);
    for (direct, exact) in direct.chunks(vocab).zip(exact.chunks(vocab)) {
        let (p, q) = (log_softmax(exact), log_softmax(direct));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        agree += usize::from(first_largest(exact) == first_largest(direct));
        largest = direct
            .iter()
            .zip(exact)
            .fold(largest, |largest, (a, b)| largest.max((a - b).abs()));
    }
    let count = tokens.len();
    println!(
        "{count} tokens: mean KL {:.5}, next token agrees {agree}/{count}, largest difference of a logit {largest:.3}",
        divergence / count as f64
    );
    Ok(())
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln();
    logits.iter().map(|x| f64::from(*x) - largest - total).collect()
}

fn first_largest(logits: &[f32]) -> Option<usize> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|logit| *logit == largest)
}

fn dequantised(source: &ModelSource) -> Result<Weights, Box<dyn Error>> {
    let values = |id| -> Result<(usize, usize, Vec<f32>), Box<dyn Error>> {
        let tensor = source.tensor(id)?;
        let mut values = vec![0.0; tensor.rows * tensor.cols];
        dequantize(tensor.tensor_type, &tensor.bytes, &mut values);
        Ok((tensor.rows, tensor.cols, values))
    };
    let matrix = |id| -> Result<PackedMatrix, Box<dyn Error>> {
        let (rows, cols, values) = values(id)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(PackedMatrix::pack(WeightType::F32, rows, cols, &bytes)?)
    };
    let layer = |index| -> Result<LayerWeights, Box<dyn Error>> {
        let id = |part| TensorId::Layer { index, part };
        Ok(LayerWeights {
            attention_norm: values(id(LayerTensor::AttentionNorm))?.2,
            query: matrix(id(LayerTensor::Query))?,
            key: matrix(id(LayerTensor::Key))?,
            value: matrix(id(LayerTensor::Value))?,
            attention_output: matrix(id(LayerTensor::AttentionOutput))?,
            mlp_norm: values(id(LayerTensor::MlpNorm))?.2,
            gate: matrix(id(LayerTensor::Gate))?,
            up: matrix(id(LayerTensor::Up))?,
            down: matrix(id(LayerTensor::Down))?,
        })
    };
    let config = source.config();
    Ok(Weights {
        embedding: matrix(TensorId::Embedding)?,
        output_norm: values(TensorId::OutputNorm)?.2,
        output: if config.tied_embeddings {
            None
        } else {
            Some(matrix(TensorId::Output)?)
        },
        layers: (0..config.layer_count).map(layer).collect::<Result<_, _>>()?,
    })
}
