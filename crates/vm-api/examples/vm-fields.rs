//! Prints docs/vm-fields.md.

fn main() {
    print!("{}", vm_api::manifest::fields::markdown());
}
