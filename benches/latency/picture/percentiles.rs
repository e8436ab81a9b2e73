//! The latency curves of `/ping`: a panel for each load, a curve for each variant.

use std::ops::Range;

use plotters::prelude::*;

use super::{
    Picture,
    canvas::{self, Canvas, FONT, LABELS, Label, TEXT},
};
use crate::latency::{
    BoxError,
    plan::{PING_RATE, SLEEPING_JOB, Scene},
    record::{LAST_PLACE, PLACES, PLACES_STEP, Record},
    spread::number,
};

const PANEL: u32 = 470;

/// Where they are from left to right, as in [`PLACES`].
const PERCENTILES: [(i32, &str); 4] = [(301, "50 %"), (1000, "90 %"), (2000, "99 %"), (LAST_PLACE, "99.9 %")];

pub(super) fn draw(records: &[Record]) -> Result<Option<Picture>, BoxError> {
    let records: Vec<&Record> =
        records.iter().filter(|record| matches!(record.scene, Scene::Cpu | Scene::Sleeping)).collect();
    let mut panels: Vec<(Scene, Option<u32>)> = records.iter().map(|record| (record.scene, record.load_pct)).collect();
    panels.sort_by_key(|(scene, load)| (*scene == Scene::Sleeping, *load));
    panels.dedup();
    if panels.is_empty() {
        return Ok(None);
    }
    // The same for all panels, so that they compare.
    let heights = canvas::heights(records.iter().flat_map(|record| record.ping_percentiles_ms.iter().copied()));
    let title = format!("Latency of /ping, {PING_RATE:.0} a second, by percentile");
    let count = u32::try_from(panels.len())?;
    let svg = canvas::picture(PANEL * count, &title, |plots| {
        for (panel, (scene, load)) in plots.split_evenly((panels.len(), 1)).iter().zip(&panels) {
            let here = |record: &&&Record| record.scene == *scene && record.load_pct == *load;
            let of_panel: Vec<&Record> = records.iter().filter(here).copied().collect();
            let caption = match load {
                Some(load) => format!("jobs that compute, at {load} % of capacity"),
                None => format!("jobs that sleep {} ms", SLEEPING_JOB.as_millis()),
            };
            draw_panel(panel, &caption, &of_panel, heights.clone())?;
        }
        Ok(())
    })?;
    let caption = format!("{title}: for each load the median of the rounds, from the fastest requests to 99.9 %.");
    Ok(Some(Picture { name: "latency-percentiles.svg", caption, svg }))
}

fn draw_panel(panel: &Canvas<'_>, caption: &str, records: &[&Record], heights: Range<f64>) -> Result<(), BoxError> {
    let powers = canvas::powers_of_ten(&heights);
    let mut chart = ChartBuilder::on(panel)
        .caption(caption, (FONT, 25))
        .margin_left(14)
        .margin_right(LABELS)
        .margin_bottom(10)
        .x_label_area_size(62)
        .y_label_area_size(86)
        .build_cartesian_2d(
            (0..LAST_PLACE).with_key_points(PERCENTILES.iter().map(|(place, _)| *place).collect()),
            heights.log_scale().with_key_points(powers),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.18))
        .x_labels(PERCENTILES.len())
        .x_label_formatter(&|place| percentile_name(*place))
        .x_label_style((FONT, TEXT))
        .y_label_formatter(&|milliseconds| milliseconds.to_string())
        .y_label_style((FONT, TEXT))
        .x_desc("percentile of the requests")
        .y_desc("ms, log scale")
        .axis_desc_style((FONT, TEXT))
        .draw()?;

    let mut labels = Vec::new();
    for record in records {
        let latencies = record.ping_percentiles_ms.iter().map(|it| canvas::on_scale(*it));
        let curve: Vec<(i32, f64)> = PLACES.step_by(PLACES_STEP).zip(latencies).collect();
        let Some(end) = curve.last().map(|end| chart.backend_coord(end)) else { continue };
        let colour = canvas::colour(record);
        chart.draw_series(LineSeries::new(curve, colour.stroke_width(3)))?;
        let note = format!("p99 {} ms{}", number(record.ping_p99_ms), canvas::doubt(record));
        labels.push(Label { end, colour, name: record.variant.clone(), note });
    }
    let (_, top) = panel.get_base_pixel();
    let plot = chart.plotting_area().get_pixel_range().1;
    canvas::draw_labels(panel, labels, plot.start - top..plot.end - top)
}

fn percentile_name(place: i32) -> String {
    let named = PERCENTILES.iter().find(|(it, _)| *it == place);
    named.map_or_else(String::new, |(_, name)| (*name).to_owned())
}
