//! All rounds in their order.

use std::time::Instant;

use crate::{
    BoxError,
    bystanders::Usage,
    plan::{Plan, Protocol},
    rows::Table,
    turns,
    variants::Variant,
};

/// Round by round; in each all protocols, and on a protocol all variants in turns. Each round begins with another variant.
pub(crate) fn measure_all(plan: Plan, variants: &[Variant]) -> Result<Vec<Table>, BoxError> {
    let begin = Instant::now();
    let mut tables = Protocol::ALL.map(|protocol| Table::new(protocol, variants)).to_vec();
    for round in 0..plan.rounds {
        for table in &mut tables {
            measure_round(table, variants, round, plan)?;
        }
        eprintln!("[round {}/{}, {:>3.0} s]", round + 1, plan.rounds, begin.elapsed().as_secs_f64());
    }
    Ok(tables)
}

fn measure_round(table: &mut Table, variants: &[Variant], round: usize, plan: Plan) -> Result<(), BoxError> {
    let before = Usage::now();
    let samples = turns::run(variants, table.protocol, plan.phases, round)?;
    for (row, sample) in table.rows.iter_mut().zip(samples) {
        row.samples.push(sample);
    }
    table.others.extend(before.and_then(|before| Some(Usage::now()?.others_percent_since(before))));
    Ok(())
}
