//! No circles of files: the modules of a crate can be read one after the other.

use crate::graphs;

#[test]
fn no_files_of_a_crate_need_each_other_in_a_circle() {
    let mut wrong = Vec::new();
    for (name, graph) in graphs() {
        for circle in graph.circles() {
            let arrows = graph.arrows_between(&circle).join(", ");
            wrong.push(format!("{name}: {}: {arrows}", circle.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "files in circles:\n{}", wrong.join("\n"));
}
