//! The p99 of `/ping` against the load: a curve for each variant.

use plotters::prelude::*;

use super::{
    Picture,
    canvas::{self, Canvas, FONT, LABELS, Label, TEXT},
};
use crate::latency::{
    BoxError,
    plan::{JOB, Scene},
    record::Record,
    spread::number,
};

const PANEL: u32 = 560;

pub(super) fn draw(records: &[Record]) -> Result<Option<Picture>, BoxError> {
    let mut records: Vec<&Record> =
        records.iter().filter(|record| record.scene == Scene::Cpu && record.load_pct.is_some()).collect();
    records.sort_by_key(|record| record.load_pct);
    if records.is_empty() {
        return Ok(None);
    }
    let title = format!("p99 of /ping beside {} ms CPU jobs", JOB.as_millis());
    let svg = canvas::picture(PANEL, &title, |panel| draw_panel(panel, &records))?;
    let caption = format!("{title}, against the jobs offered in percent of what the machine can do; logarithmic.");
    Ok(Some(Picture { name: "latency.svg", caption, svg }))
}

fn draw_panel(panel: &Canvas<'_>, records: &[&Record]) -> Result<(), BoxError> {
    let heights = canvas::heights(records.iter().map(|record| record.ping_p99_ms));
    let loads = || records.iter().filter_map(|record| record.load_pct);
    let (lowest, highest) = (loads().min().unwrap_or(0), loads().max().unwrap_or(100));
    let mut marked: Vec<u32> = loads().collect();
    marked.dedup();
    let powers = canvas::powers_of_ten(&heights);
    // Room left of the first points, none right of the last ones, where the labels are.
    let mut chart = ChartBuilder::on(panel)
        .margin_top(8)
        .margin_left(14)
        .margin_right(LABELS)
        .margin_bottom(10)
        .x_label_area_size(62)
        .y_label_area_size(86)
        .build_cartesian_2d(
            (lowest.saturating_sub(10)..highest.max(lowest + 1)).with_key_points(marked),
            heights.log_scale().with_key_points(powers),
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.18))
        .x_label_formatter(&|load| format!("{load} %"))
        .x_label_style((FONT, TEXT))
        .y_label_formatter(&|milliseconds| milliseconds.to_string())
        .y_label_style((FONT, TEXT))
        .x_desc("jobs offered, of capacity")
        .y_desc("p99 of /ping in ms, log scale")
        .axis_desc_style((FONT, TEXT))
        .draw()?;

    let mut labels: Vec<Label> = Vec::new();
    for (place, record) in records.iter().enumerate() {
        if records[..place].iter().any(|other| other.variant == record.variant) {
            continue;
        }
        let of_variant = records.iter().filter(|other| other.variant == record.variant);
        let points: Vec<(u32, f64)> =
            of_variant.filter_map(|other| Some((other.load_pct?, canvas::on_scale(other.ping_p99_ms)))).collect();
        let Some(last) = points.last().copied() else { continue };
        let colour = canvas::colour(record);
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
        chart.draw_series(LineSeries::new(points, colour.stroke_width(3)))?;
        let note = format!("{} ms at {} %{}", number(last.1), last.0, canvas::doubt(record));
        labels.push(Label { end: chart.backend_coord(&last), colour, name: record.variant.clone(), note });
    }
    let (_, top) = panel.get_base_pixel();
    let plot = chart.plotting_area().get_pixel_range().1;
    canvas::draw_labels(panel, labels, plot.start - top..plot.end - top)
}
